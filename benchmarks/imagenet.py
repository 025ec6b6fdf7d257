"""Compare ImageNet top-1 of a model file in `tl.runtime` with torchvision's own preprocessing and network.

Usage: TL_SHARED=FOLDER python benchmarks/imagenet.py mobilenet_v2 [squeezenet1_0 ...]
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import tl.runtime
from tl.exporter.export import export_pretrained
from tl.progress import Silent
from tl.trainer.models.backbones import build_classifier, torchvision_weights
from tl.trainer.models.weights import find_weights, load_into


def main(names: list[str]) -> None:
    shared = Path(os.environ["TL_SHARED"])
    folder = shared / "data" / "imagenet-val-500"
    images = sorted(path for path in folder.rglob("*") if path.is_file())
    synsets = [line.split()[0] for line in (shared / "data/imagenet/synset.txt").read_text().splitlines()]
    truth = np.array([synsets.index(path.parent.name) for path in images])
    print("| backbone | tl.runtime top-1 | torchvision top-1 | same label | max abs dp | dog.jpg |")
    print("|---|---|---|---|---|---|")
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(temporary) / f"{name}.onnx"
            export_pretrained(name, str(shared / "weights"), [folder], out, Silent())
            with tl.runtime.load(out, device="cpu") as model:
                ours = np.stack([result.probabilities for result in model.predict_iter(images)])
                dog = model.predict(shared / "data" / "imagenet" / "dog.jpg")
        theirs = torchvision_probabilities(name, str(shared / "weights"), images)
        accuracy = [(p.argmax(axis=1) == truth).mean() for p in (ours, theirs)]
        same = (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()
        difference = np.abs(ours - theirs).max()
        row = f"{accuracy[0]:.1%} | {accuracy[1]:.1%} | {same:.1%} | {difference:.1e}"
        print(f"| {name} | {row} | {dog.label} {dog.confidence:.3f} |")


@torch.no_grad()
def torchvision_probabilities(name: str, weights: str, images: list[Path]) -> np.ndarray:
    """Probabilities (N, 1000) from torchvision alone: its transforms on PIL images, its network in torch."""
    found = find_weights(name, weights)
    assert found is not None
    classifier = build_classifier(name).eval()
    load_into(classifier, found)
    transform = torchvision_weights(name).transforms()
    batches = torch.stack([transform(Image.open(path).convert("RGB")) for path in images]).split(50)
    return torch.cat([torch.softmax(classifier(batch), 1) for batch in batches]).numpy()


if __name__ == "__main__":
    main(sys.argv[1:] or ["mobilenet_v2"])
