"""Measure how fast a model file runs on this machine, and recommend settings."""
