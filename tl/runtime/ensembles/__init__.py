"""Classifiers that vote, and rules for when to reject their predictions."""
