"""Benchmark training on CUDA: `tl train`, the rate on prepared data, and the rate at which its workers produce batches.

    python benchmarks/train_cuda.py IMAGES [--backbone resnet50] [--precision bf16] [--augment standard]

IMAGES is a folder of class folders. Rows:

- synthetic: forward pass, backward pass and optimizer step on uint8 batches already on the device, with the network,
  optimizer and precision of `tl train`.
- loader: batches from the workers of `tl train`, without a network.
- tl train: its later epochs.

The bound is the smaller of the first two. `--device cpu` tests this script without a GPU.
"""

import argparse
import dataclasses
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from tl.progress import Silent
from tl.trainer.config import TrainConfig
from tl.trainer.fit.batches import ImageBatches, LabeledItems
from tl.trainer.fit.distributed import Ranks
from tl.trainer.fit.image_training import num_workers
from tl.trainer.fit.machine import Machine, build_machine
from tl.trainer.fit.optimizers import build_optimizer
from tl.trainer.fit.steps import Classification, TrainableModel, build_scaler, train_step
from tl.trainer.models.backbones import find_backbone_info
from tl.trainer.models.build import build_network
from tl.trainer.models.freezing import ParameterGroup
from tl.trainer.options import settled
from tl.trainer.run_folder.run import Run
from tl.trainer.task import prepare_task
from tl.trainer.train import train


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--augment", default="standard")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--count", type=int, default=16384, help="training images; linked again where there are fewer")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(options.images, Path(folder) / "data", options.count)
        config = TrainConfig(
            data=str(data),
            out=str(Path(folder) / "run"),
            method="scratch",
            backbone=options.backbone,
            precision=options.precision,
            augment=options.augment,
            device=options.device,
            batch_size=options.batch_size,
            epochs=options.epochs,
            audit=False,
        )
        print(f"{options.backbone}, {options.augment}, batches of {options.batch_size}, {os.cpu_count()} cores")
        started = time.perf_counter()
        run = train(config, Silent()).run
        print(f"tl train, whole: {time.perf_counter() - started:.1f} s", flush=True)
        mine = show("tl train, later epochs", history_rates(run)[1:])
        print("history: " + (run.folder / "history.csv").read_text())
        ready = synthetic(run, options.batch_size)
        loaded = loader(dataclasses.replace(config, out=str(Path(folder) / "loader")))
        bound, which = min((ready, "synthetic"), (loaded, "loader"))
        print(f"bound {bound:.0f} ({which}); tl train reaches {mine / bound:.2f} of it")


def make_data(images: Path, data: Path, count: int) -> Path:
    """Create train/ and val/ with links to the images."""
    found = sorted(images.rglob("*.jpg"))
    for split, number in (("train", count), ("val", 64)):
        for i, path in zip(range(number), itertools.cycle(found), strict=False):
            link = data / split / path.parent.name / f"{i}-{path.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    return data


def show(name: str, rates: list[float]) -> float:
    middle = statistics.median(rates)
    print(f"{name}: {middle:.1f} images/s ({min(rates):.1f} to {max(rates):.1f})", flush=True)
    return middle


def history_rates(run: Run) -> list[float]:
    lines = (run.folder / "history.csv").read_text().splitlines()
    column = lines[0].split(",").index("images_per_s")
    return [float(line.split(",")[column]) for line in lines[1:]]


def synthetic(run: Run, batch: int) -> float:
    """images/s of steps on a batch that is already on the device."""
    config = run.load_config()
    machine = build_machine(config.device, config.precision, None)
    info = find_backbone_info(config.backbone)
    network = build_network(config, info, 7, None).to(machine.device).train()
    groups = [ParameterGroup(tuple(network.parameters()), 1.0)]
    trainable = TrainableModel(network, groups, Classification(tuple("abcdefg"), None, 0.0))
    optimizer = build_optimizer(settled(config.optimizer), groups, 1e-4, momentum=0.9, weight_decay=1e-4)
    images = torch.randint(0, 256, (batch, info.image_size, info.image_size, 3), dtype=torch.uint8)
    ready = [(images.to(machine.device), torch.randint(7, (batch,), device=machine.device), batch)]
    steps = 40 if machine.device.type == "cuda" else 2
    rates = []
    for _ in range(4):
        started = time.perf_counter()
        for _ in range(steps):
            train_step(trainable, network, ready, optimizer, build_scaler(machine), machine, Ranks(), None)
        synchronize(machine)
        rates.append(batch * steps / (time.perf_counter() - started))
    return show("synthetic", rates[1:])


def loader(config: TrainConfig) -> float:
    """images/s of augmented batches from the workers of `tl train`, with images cached in memory."""
    task = prepare_task(config, Silent())
    machine = build_machine(config.device, config.precision, None)
    train_indices = task.store.indices("train")
    batches = ImageBatches(
        LabeledItems(task.store, task.ids, task.augment, 0),
        train_indices,
        batch_size=settled(task.config.batch_size),
        seed=0,
        workers=num_workers(task.config, machine),
        epochs=config.epochs,
        pin_memory=machine.device.type == "cuda",
    )
    rates = []
    for epoch in range(1, config.epochs + 1):
        started = time.perf_counter()
        for _ in batches.epoch(epoch):
            pass
        rates.append(len(train_indices) / (time.perf_counter() - started))
    return show(f"loader, {num_workers(task.config, machine)} workers", rates[1:])


def synchronize(machine: Machine) -> None:
    if machine.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
