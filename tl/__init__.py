"""Transfer learning for labs: train, export to one self-describing ONNX file, predict without torch.

Knows its version and nothing else: import the part you need (`tl.runtime` needs no torch).
"""

__version__ = "0.1.0"
