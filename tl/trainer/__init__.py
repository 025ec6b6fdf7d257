"""Train transfer-learning models from images; everything up to, not including, the model file.

Begin with `train`, one run from top to bottom: `options` resolve the `config`, `task` reads `data`, `images` and
kept `features`, `audit` looks for leaks, and one of three ways follows: `solvers`, steps on kept features
(`head_training`), or steps on images (`image_training`: `networks`, `batches`, `loop`). `runs` is the folder that
remains; `probe` compares heads without one. What works on names and numbers alone (`config`, `data`, `task`, `metrics`,
`evaluate` ...) imports no torch, so that the command line and solved heads start at once.
"""
