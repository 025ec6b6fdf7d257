"""Labeled images before any training: manifests, splits, the audit, decoded images and kept features. No torch."""

from __future__ import annotations

from typing import Literal

# Where decoded images are kept between epochs.
Cache = Literal["auto", "ram", "disk", "none"]
