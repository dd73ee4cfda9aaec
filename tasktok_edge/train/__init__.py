"""The recipes that make checkpoints: task networks, pre-restorer, tokenizer, greedy token order, joint training."""
