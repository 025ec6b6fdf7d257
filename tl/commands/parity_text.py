"""What an export check found, in words. Knows the contract's report; does not know how it was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tl.runtime.contract import Parity


def parity_text(parity: Parity) -> str:
    """The largest difference, its limit, and for classes the agreement."""
    if parity.top1_agreement is None:
        return f"max difference {parity.pipeline_max_abs_diff:.1e} px of the input (allowed {parity.tolerance:g})"
    worst = max(parity.session_max_abs_diff["probabilities"], parity.pipeline_max_abs_diff)
    return f"max |dp| {worst:.1e} (allowed {parity.tolerance:.0e}), top-1 agreement {parity.top1_agreement:.0%}"
