"""Train networks that find landmarks: points in pixels of the photo, from images annotated by hand.

`data` reads annotations, `task` prepares a run, `network` and `objective` are what is trained for, `items` what it is
trained on, `training` does it, `metrics` judge it. Loop, backbones, freezing and run folders are those of all tasks.
"""
