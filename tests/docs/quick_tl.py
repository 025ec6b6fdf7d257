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


def _takes_epochs(options: Sequence[str]) -> bool:
    """Whether a run is trained by steps only. Method auto sets its epochs itself, and a solved head has none."""
    from tl.trainer.options import find_task

    if "svm" in options or ("features" in options and "mlp" not in options):
        return False
    is_auto = not {"--method", "--config", "--head", "--lr", "--optimizer"} & set(options)
    return not is_auto or any(find_task(word) == "landmarks" for word in options)


def added_options(words: Sequence[str]) -> list[str]:
    """What a test appends to the command line `words`, which begins with the name of the command."""
    command, *options = words or [""]
    if command == "train" and "--resume" not in options:
        return [*_SMALL, *(("--epochs", "2") if _takes_epochs(options) else ())]
    if command == "probe":
        return list(_SMALL)
    if command == "sweep":
        short = () if "--dry-run" in options else ("--budget", "1s")  # the first run of the study, not all of them
        return [*(word for setting in _SMALL_STUDY for word in ("--set", setting)), *short]
    if command == "export" and {"int8", "fp16"} & set(options):
        return ["--keep-slower", "--min-agreement", "0"]  # a network this small is seldom faster
    if command == "review":
        return ["--backbone", "smallcnn", "--threads", "1"]
    if command == "bench":
        return ["--seconds", "0.5", "--threads", "1", "--image-size", "640x480"]
    return []


if __name__ == "__main__":
    from tl.cli import main

    sys.argv[1:] = [*sys.argv[1:], *added_options(sys.argv[1:])]
    main()
