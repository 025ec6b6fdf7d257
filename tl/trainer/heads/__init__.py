"""Heads on cached features: solved or trained by steps, cross-validated."""
