"""Describe the libraries and processors that a run was created with. Never imports torch."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from tl import __version__
from tl.runtime.devices import graphics_cards, processor_model, usable_cores

_LIBRARIES = ("torch", "torchvision", "albumentations", "scikit-learn", "numpy", "pillow", "simplejpeg", "onnxruntime")


def describe_environment() -> dict[str, Any]:
    """The contents of `environment.json`."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_model(),
        "cores": usable_cores(),
        "graphics_cards": graphics_cards(),
        "versions": library_versions(_LIBRARIES),
    }


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Version of this toolkit and of the named distributions that are installed."""
    versions = {"tl-toolkit": __version__}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
