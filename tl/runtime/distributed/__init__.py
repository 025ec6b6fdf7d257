"""Prediction on several machines: a `Predictor` whose images are predicted by the workers of a Ray cluster.

Order, results, the ledger and the formats of results are those of a local prediction.
"""
