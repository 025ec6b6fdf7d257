"""Classifiers that other tools exported -> model files of ours that give the same probabilities. Needs no torch.

Begin with `adopt` (the steps). `foreign` reads a file and its metadata, `presets` and `huggingface` know how its tool
prepares images, `labels` its class names; `imported` is what all that comes to, and `wrap` builds the graph around it.
"""
