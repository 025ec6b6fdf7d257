"""Evaluate classifiers and landmark models, and calibrate their confidence. Never imports torch."""
