"""Classifiers that vote, and when their answer should not be believed."""
