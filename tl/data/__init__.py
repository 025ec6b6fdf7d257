"""Labeled images before training: manifests, splits, the audit, decoded images, cached features. No torch."""

from __future__ import annotations

from typing import Literal

# Where decoded images are cached between epochs.
Cache = Literal["auto", "ram", "disk", "none"]
