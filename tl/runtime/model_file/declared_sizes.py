"""Bound the tensors that constants of a model file ask for: onnxruntime makes them as soon as it loads the file.

Knows only sizes that are written in the file. Sizes that a model computes, or takes from its input, are unknown here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tl.errors import ModelFileError

# 1 GiB as float32; folding constants needs it twice. The largest constant tensors of real models have millions.
MAX_ELEMENTS = 1 << 28
MAX_SHAPE_VALUES = 64  # longer lists of integers are no shapes

Values = Sequence[int] | None


def _product(sizes: Sequence[int]) -> int:
    return math.prod(max(size, 0) for size in sizes)


def _range(start: Values, limit: Values, delta: Values) -> int:
    if not (start and limit and delta and delta[0]):
        return 0
    return max(0, (limit[0] - start[0]) // delta[0])


def _padded(pads: Sequence[int]) -> int:
    half = len(pads) // 2
    return math.prod(max(1, first + last) for first, last in zip(pads[:half], pads[half:], strict=False))


# Operator -> the least number of elements of its output, from its inputs' values (None: unknown) and the number of
# elements of the first. Source: the ONNX operator specifications.
_OUTPUTS: dict[str, Callable[[list[Values], int], int]] = {
    "ConstantOfShape": lambda inputs, count: _product(inputs[0] or ()) if inputs[0] is not None else 0,
    "Expand": lambda inputs, count: _product(inputs[1] or ()),
    "Tile": lambda inputs, count: max(count, 1) * _product(inputs[1] or ()),
    "Range": lambda inputs, count: _range(*inputs[:3]),
    "Pad": lambda inputs, count: _padded(inputs[1] or ()),
    "Resize": lambda inputs, count: _product(inputs[3] or ()) if len(inputs) > 3 else 0,
    "OneHot": lambda inputs, count: max(count, 1) * _product(inputs[1] or ()),
}
_INPUTS = {"ConstantOfShape": 1, "Range": 3}  # number of inputs that each must have; two for the others
SIZED = frozenset(_OUTPUTS)


class DeclaredSizes:
    """The constants and the operators of one graph or function, in which every name is unique."""

    def __init__(self) -> None:
        self._values: dict[str, Sequence[int]] = {}
        self._counts: dict[str, int] = {}
        self._nodes: list[tuple[str, list[str], str]] = []

    def constant(self, name: str, count: int, values: Values) -> None:
        """Add a constant of `count` elements. `values`: its integers, None if they are unknown or not integers."""
        self._counts[name] = count
        if values is not None:
            self._values[name] = values

    def node(self, operator: str, inputs: list[str], output: str) -> None:
        """Add a call of one of the operators in `SIZED`."""
        self._nodes.append((operator, inputs, output))

    def check(self) -> None:
        """Raise `ModelFileError` without the file's name for an output above the limit."""
        for operator, inputs, output in self._nodes:
            if len(inputs) < _INPUTS.get(operator, 2):
                continue  # onnxruntime refuses it
            values = [self._values.get(name) for name in inputs]
            count = _OUTPUTS[operator](values, self._counts.get(inputs[0], 1))
            if count > MAX_ELEMENTS:
                raise ModelFileError(
                    f"its operator {operator!r} makes a tensor of {count} elements, expected at most {MAX_ELEMENTS}: "
                    "the file is damaged or malicious, download or export it again"
                )
            self._counts[output] = count
