"""Which operators a model calls, and how its own functions call each other.

Knows names, domains and counts. Does not know what operators compute or how they are stored.
"""

from __future__ import annotations

from collections import Counter

from tl.errors import ModelFileError

Operator = tuple[str, str]  # domain ("" for ai.onnx), name

# What onnxruntime builds in. Its optimiser writes files with some of the com.microsoft ones.
DOMAINS = frozenset(
    (
        "",
        "ai.onnx.ml",
        "ai.onnx.preview",
        "ai.onnx.preview.training",
        "ai.onnx.training",
        "com.microsoft",
        "com.microsoft.experimental",
        "com.microsoft.nchwc",
        "com.ms.internal.nhwc",
    )
)
# onnxruntime writes each function out wherever it is called, when it loads a file: 14 that call the next one twice take
# 7 s and with each nearly four times as long, and one that calls itself crashes version 1.18.
MAX_CALL_DEPTH = 32
MAX_WRITTEN_OUT = 50_000


class Operators:
    """The calls in one model: in its graph, and in each function of its own."""

    def __init__(self) -> None:
        self.graph: Counter[Operator] = Counter()
        self._functions: dict[Operator, Counter[Operator]] = {}

    def define(self, function: Operator, calls: Counter[Operator]) -> None:
        """Add a function of the model's own. Overloads, which share a name, count as one."""
        self._functions.setdefault(function, Counter()).update(calls)

    def check(self) -> None:
        """Raises `ModelFileError` without the file's name for operators of others and calls without end."""
        called = set(self.graph).union(*self._functions.values())
        foreign = sorted(one for one in called if one[0] not in DOMAINS and one not in self._functions)
        if foreign:
            shown = ", ".join(f"{name!r} of {domain!r}" for domain, name in foreign[:3])
            more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
            raise ModelFileError(
                f"it needs the operators {shown}{more}, expected only those built into onnxruntime: "
                "libraries of operators are never loaded, export it with standard operators"
            )
        if self._written_out(self.graph, {}, 0) > MAX_WRITTEN_OUT:
            raise ModelFileError(f"its functions, written out, have over {MAX_WRITTEN_OUT} nodes: export it without")

    def _written_out(self, calls: Counter[Operator], known: dict[Operator, int], depth: int) -> int:
        """How many nodes the functions among `calls` become. `known`: the same of functions seen before."""
        if depth > MAX_CALL_DEPTH:
            raise ModelFileError(
                f"its functions call each other over {MAX_CALL_DEPTH} deep: export it without functions"
            )
        total = 0
        for function, count in calls.items():
            body = self._functions.get(function)
            if body is None:
                continue
            if function not in known:
                known[function] = body.total() + self._written_out(body, known, depth + 1)
            total += count * known[function]
        return total
