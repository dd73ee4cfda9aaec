"""Official TaskTok checkpoints: a folder of `.pt` state dicts, found, read without executing anything, and filled in."""
