"""The model file: its contract, the checks made before it is opened, its self-test."""
