"""Train transfer-learning models from images: everything up to, but not including, the model file.

Start with `train`, which executes one run from start to finish. `options` resolves the `config`. `task` reads the
images and cached features (`tl.data`). Training then takes one of three paths: `heads.solvers`, steps on cached
features (`heads.stepped_head`), or steps on images (`fit.image_training`, with `fit.batches` and `fit.loop`).
`models` builds networks, `run_folder` writes the run; `heads.probe` compares heads without one. `config`, `task` and
`heads.solvers` import no torch, so that the command line and solved heads start fast.
"""
