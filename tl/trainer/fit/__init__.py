"""Training a network by steps: batches, augmentation, optimizers, the loop."""
