"""Train transfer-learning models from images: everything up to, but not including, the model file.

Start with `train`, which executes one run from start to finish. `options` resolves the `config`. `task` reads `data`,
`images` and cached `features`. `audit` checks for leaks. Training then takes one of three paths: `solvers`, steps on
cached features (`head_training`), or steps on images (`image_training`: `networks`, `batches`, `loop`). `runs` writes
the run folder; `probe` compares heads without one. Modules that only handle names and numbers (`config`, `data`,
`task`, `metrics`, `evaluate` ...) import no torch, so that the command line and solved heads start fast.
"""
