"""How fast a model file runs on this machine, and what to use."""
