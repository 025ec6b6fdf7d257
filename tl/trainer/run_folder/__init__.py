"""The run folder: its files, and resuming training."""
