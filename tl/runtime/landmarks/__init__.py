"""Landmarks on images: sets of points, their shapes, models that predict them, and their file formats.

Each format is a module with `read` and `write`; `files` selects one. All of them use `LandmarkSet`, whose coordinates
are measured from the center of the top-left pixel of the upright image.
"""
