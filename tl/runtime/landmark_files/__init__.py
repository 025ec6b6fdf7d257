"""Files of landmarks, read and written: our CSV (wide and long), TPS, COCO keypoints, DeepLabCut.

Each format is one module with `read` and `write`; `files` chooses between them. All give and take a `LandmarkSet`,
whose coordinates count from the centre of the top-left pixel of the upright picture.
"""
