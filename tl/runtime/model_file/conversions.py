"""Records of how the graph of a model file was converted after its export: to lower precision, to any image size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantization:
    """How a lower-precision graph was made from the fp32 graph, and how the two compare.

    `method`: description. `calibration_images`: number of training images used to measure ranges, drawn with `seed`; 0
    if none are needed. `top1_agreement` in [0, 1] and `max_abs_diff` of the probabilities: compared with the fp32
    graph, on `images` validation images. `speedup`: images per second relative to the fp32 graph, median of `rounds`
    rounds. `faster_rounds`: number of rounds in which it was faster; `slowest` and `fastest`: minimum and
    maximum speedup. The lower precision ran on `provider` and `processor`, with `threads` callers and batches of
    `batch_size`; so did fp32, but for bf16, which is compared with fp32 in onnxruntime on the CPU.
    `kept_slower`: whether the file was kept although it was not faster there.
    """

    method: str
    calibration_images: int
    seed: int
    images: int
    top1_agreement: float
    max_abs_diff: float
    speedup: float
    slowest: float
    fastest: float
    rounds: int
    faster_rounds: int
    provider: str
    processor: str
    threads: int
    batch_size: int
    kept_slower: bool


@dataclass(frozen=True)
class AnySize:
    """How a graph that resizes images itself compares with the fixed-size file that it was made from.

    Measured on `images` images, which the graph got decoded at full size. `max_pixel_diff`, `mean_pixel_diff`: largest
    and mean absolute difference of the values (0..255) of the network's input between the graph and `tl.runtime`.
    `max_abs_diff`: largest difference of a result between this graph and the fixed-size file with its own
    preprocessing, JPEG scale included: of a probability, of a coordinate in input pixels, or of a number in standard
    deviations. `tolerance`: the largest allowed `max_abs_diff`. `top1_agreement` in [0, 1], None unless classes.
    """

    images: int
    max_pixel_diff: int
    mean_pixel_diff: float
    max_abs_diff: float
    top1_agreement: float | None
    tolerance: float
