"""Merge several model files into one that votes inside its graph and computes shared parts once.

`graph` joins graphs; `merge` checks compatibility, verifies the result and writes it. Needs no torch.
"""
