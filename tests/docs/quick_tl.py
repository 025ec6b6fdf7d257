"""The `tl` that the documentation's commands run in tests: the real one, with smaller settings added at the end.

The pages name ImageNet backbones and their usual numbers of epochs. Tests have neither a network to download weights
nor hours, so the options below are appended; a value given twice counts as given last. Nothing else differs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

# Small network, small images, one thread, as other tests run beside.
_SMALL = ("--backbone", "smallcnn", "--image-size", "32", "--threads", "1")
_SMALL_STUDY = ("backbone=smallcnn", "image_size=32", "threads=1", "epochs=1")


def added_options(words: Sequence[str]) -> list[str]:
    """What a test appends to the command line `words`, which begins with the name of the command."""
    command, *options = words or [""]
    if command == "train" and "--resume" not in options:
        is_solved = "svm" in options or ("features" in options and "mlp" not in options)  # has no epochs
        return [*_SMALL, *(() if is_solved else ("--epochs", "2"))]
    if command == "probe":
        return list(_SMALL)
    if command == "sweep":
        short = () if "--dry-run" in options else ("--budget", "1s")  # the first run of the study, not all of them
        return [*(word for setting in _SMALL_STUDY for word in ("--set", setting)), *short]
    if command == "export" and {"int8", "fp16"} & set(options):
        return ["--keep-slower", "--min-agreement", "0"]  # a network this small is seldom faster
    if command == "bench":
        return ["--seconds", "0.5", "--threads", "1", "--image-size", "640x480"]
    return []


if __name__ == "__main__":
    from tl.cli import main

    sys.argv[1:] = [*sys.argv[1:], *added_options(sys.argv[1:])]
    main()
