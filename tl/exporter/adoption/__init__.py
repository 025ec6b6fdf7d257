"""Convert classifiers exported by other tools into our model files with the same probabilities. Needs no torch.

Start with `adopt` (the steps). `foreign` reads a file and its metadata. `presets` and `huggingface` define how its
tool preprocesses images, `labels` its class names. `imported_model` combines these, and `wrap` builds the graph around
it.
"""
