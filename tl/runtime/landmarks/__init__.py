"""Points on images: sets of them, their shapes, models that find them, and their files.

Each format is one module with `read` and `write`; `files` chooses between them. All give and take a `LandmarkSet`,
whose coordinates count from the center of the top-left pixel of the upright image.
"""
