"""TaskTok in PyTorch: one module of five replaceable parts, its presets and its checkpoints."""
