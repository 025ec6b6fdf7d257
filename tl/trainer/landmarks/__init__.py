"""Train networks that locate landmarks: points in pixels of the photo, from manually annotated images.

`data` reads annotations, `task` prepares a run, `network` and `objective` define the model and its losses, `items`
provides the training images, `training` trains and `metrics` evaluates. The loop, backbones, freezing and run folders
are shared by all tasks.
"""
