"""Fit a new linear head on the trunk of an existing model file, without torch."""
