"""How good a classifier or landmark model is, and what its confidence is worth. No torch."""
