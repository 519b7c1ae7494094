"""The training loop, runs on disk, checkpoints, processes."""
