"""Several model files -> one that votes inside its graph and computes what they share once.

`graph` joins graphs, `merge` checks that the files fit, proves the result and writes it. Needs no torch.
"""
