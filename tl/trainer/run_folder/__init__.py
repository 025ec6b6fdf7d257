"""The run folder: what is written, and how training is taken up again."""
