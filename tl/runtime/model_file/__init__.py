"""The model file: its contract, what is checked before it is opened, its self-test."""
