"""What survives a run: files, checkpoints, and what identifies them."""
