"""Measure the backbones that `tl train --help` lists: parameters, file size, and images per second of one CPU core.

The speed is that of onnxruntime with one thread at the backbone's own image size, from processor time, with random
weights; it includes normalization, not decoding.

python benchmarks/backbones.py
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from tl.runtime.session import Session
from tl.trainer.config import TrainConfig
from tl.trainer.features.extraction import _Features
from tl.trainer.models.backbone_info import RECOMMENDED
from tl.trainer.models.backbones import find_backbone_info
from tl.trainer.models.build import build_network, to_onnx
from tl.trainer.options import resolve

BATCH, ROUNDS = 4, 5


def main() -> None:
    print("| backbone | image size | parameters | MB | images per core second |\n|---|---|---|---|---|")
    for choice in RECOMMENDED:
        info = find_backbone_info(choice.name)
        config = resolve(TrainConfig(data="x", method="scratch", backbone=choice.name))
        network = build_network(config, info, 2, None).eval()
        count = sum(parameter.numel() for parameter in network.trunk.parameters())
        side = info.image_size
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.onnx"
            path.write_bytes(to_onnx(_Features(network), (side, side, 3), ("features",)).SerializeToString())
            session = Session(path, device="cpu", threads=1, require_contract=False)
            images = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3), dtype=np.uint8)
            session.run(images, ("features",))
            started = time.process_time()
            for _ in range(ROUNDS):
                session.run(images, ("features",))
            rate = BATCH * ROUNDS / (time.process_time() - started)
        print(f"| {choice.name} | {side} | {count / 1e6:.1f} M | {count * 4 / 1e6:.0f} | {rate:.1f} |", flush=True)


if __name__ == "__main__":
    main()
