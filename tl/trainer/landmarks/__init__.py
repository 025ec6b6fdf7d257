"""Train networks that locate landmarks: points in pixels of the photo, from manually annotated images.

`data` reads annotations, `task` prepares a run, `network` defines the model, `training` its losses and the loop;
`tl.evaluation.landmarks` has the metrics. The loop, backbones, freezing and run folders
are shared by all tasks.
"""
