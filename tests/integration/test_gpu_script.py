"""Run the script for GPU machines on the CPU, with a small network, random weights and few images."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.trainer.make import COLOR_RGB, make_noise

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("setup", "models", "tests", "predict", "train", "half", "tensorrt")


@pytest.mark.slow
def test_gpu_script__dry_run(tmp_path: Path) -> None:
    for c, (name, rgb) in enumerate(COLOR_RGB.items()):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(16):
            image = Image.fromarray(make_noise(100 * c + i, rgb, (64, 72)))
            image.save(tmp_path / "images" / name / f"{i}.jpg")
    out = tmp_path / "out"
    environment = {
        **os.environ,
        **{"DEVICE": "cpu", "BACKBONES": "smallcnn", "PYTHON": sys.executable, "IMAGES": str(tmp_path / "images")},
        **{"SITE": str(tmp_path / "nowhere"), "WHEELS": "", "WORK": str(tmp_path / "work"), "TL_WEIGHTS_DIR": ""},
        "TL_CACHE_DIR": str(tmp_path / "cache"),
    }
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = re.sub(r" after \d+ s", "", done.stdout).splitlines()
    errors = "".join((out / f"{stage}.err").read_text(encoding="utf-8") for stage in STAGES)
    assert said == [line for stage in STAGES for line in (f"== {stage}", "exit 0")], errors
    for stage, words in {
        "predict": ("decode threads", "decode pool", "tl 8"),
        "train": ("tl train, whole", "bound "),
        "half": ("fp16",),
    }.items():
        text = (out / f"{stage}.txt").read_text(encoding="utf-8")
        assert all(word in text for word in words), text
    assert all((tmp_path / "work" / f"{name}.onnx").is_file() for name in ("smallcnn", "half"))
