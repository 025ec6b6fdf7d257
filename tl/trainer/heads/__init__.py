"""Heads on kept features: solved or trained by steps, cross-validated."""
