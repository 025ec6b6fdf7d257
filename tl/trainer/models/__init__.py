"""Backbones, heads, weights and freezing: what a network is made of."""
