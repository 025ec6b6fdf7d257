"""Train transfer-learning models from pictures; everything up to, not including, the model file.

Read the parts in this order: `config` (every option), `data` (pictures, labels, splits), `pictures` (decoded once),
`augment`, `backbones` + `weights` + `heads` -> `network`, `loop`, `train` (one run from top to bottom), `runs` (its
folder). `config`, `data`, `metrics` and `evaluate` import no torch: the command line uses them without it.
"""
