"""What a run or model file was made with: libraries, and the machine by its processors. Imports none of the libraries.

Knows installed packages and processor names. Does not know paths or names of machines and persons.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from tl import __version__
from tl.runtime.cores import processor_model
from tl.runtime.devices import graphics_cards, usable_cores

_LIBRARIES = ("torch", "torchvision", "albumentations", "scikit-learn", "numpy", "pillow", "simplejpeg", "onnxruntime")


def describe_environment() -> dict[str, Any]:
    """What `environment.json` holds."""
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
    """Version of this toolkit and of those of the named distributions that are installed."""
    versions = {"tl-toolkit": __version__}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
