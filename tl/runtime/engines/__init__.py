"""The programs that compute a model file: onnxruntime, and OpenVINO's own runtime.

`engine` is the interface; each other module is the only one that imports its library. An engine handles tensors and
metadata; `tl.runtime.session` checks files, contracts and outputs.
"""
