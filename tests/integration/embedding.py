"""The code of docs/how-to/embedding.md as files, with the models and images that it names.

`python -m tests.integration.embedding FOLDER` writes them, for a check in another environment.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.models import make_model
from tests.spots import USUAL_XY, make_spot_model, save_spots

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/embedding.md"


def read_examples() -> dict[str, str]:
    """Heading -> code."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = {section.splitlines()[0]: re.findall(r"```python\n(.*?)```", section, re.DOTALL) for section in sections}
    return {heading: code for heading, blocks in found.items() for code in blocks}


def write_examples(folder: Path) -> dict[str, Path]:
    """Heading -> script in `folder`, beside the files that the scripts open."""
    folder.mkdir(parents=True, exist_ok=True)
    make_model(folder / "model.onnx")
    make_model(folder / "other.onnx", gain=0.1)
    Image.fromarray(np.full((40, 30, 3), (10, 220, 30), np.uint8)).save(folder / "photo.png")
    make_spot_model(folder / "wing.onnx")
    save_spots(folder / "wing.png", USUAL_XY)
    scripts = {}
    for heading, code in read_examples().items():
        scripts[heading] = folder / f"{re.sub('[^a-z]+', '_', heading.lower())}.py"
        scripts[heading].write_text(code, encoding="utf-8")
    return scripts


if __name__ == "__main__":
    write_examples(Path(sys.argv[1]))
