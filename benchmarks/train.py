"""Measure the fine-tuning speed of `tl train`, as ratios within one run, in alternating rounds:

- bound: the bare loop on prepared tensors (channels-last, raised malloc thresholds) plus the core time of augmentation;
- peers: fastai's Learner and transformers' Trainer with their defaults, each in its own process, so that none benefits
  from another's settings (run with the Python of the environment created by benchmarks/peers.sh);
- photos: large photos decoded once and cached, against decoded in every epoch.
- synthetic (CUDA only): ResNet-50 on tensors that are already on the device.

    TL_SHARED=... python benchmarks/train.py [bound] [peers] [photos] [synthetic]
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tl.progress import Silent
from tl.runtime.imaging.pipeline import load_working
from tl.runtime.imaging.preprocessing import build_preprocessing
from tl.trainer.config import TrainConfig
from tl.trainer.fit.augment import build_augment
from tl.trainer.fit.machine import build_machine
from tl.trainer.train import train

SHARED = Path(os.environ["TL_SHARED"])
os.environ["TL_WEIGHTS_DIR"] = str(SHARED / "weights")
PETS = SHARED / "data" / "cats-dogs"
BATCH, ROUNDS = 32, 3


def show(name: str, rates: list[float]) -> float:
    middle = statistics.median(rates)
    print(f"{name}: {middle:.1f} images/s ({min(rates):.1f} to {max(rates):.1f})", flush=True)
    return middle


def history_rates(out: Path) -> list[float]:
    lines = (out / "history.csv").read_text().splitlines()
    column = lines[0].split(",").index("images_per_s")
    return [float(line.split(",")[column]) for line in lines[1:]]


def ours(folder: Path, **changes) -> list[float]:
    """Training images/s of each epoch, excluding validation."""
    out = Path(tempfile.mkdtemp(dir=folder))
    values = {"data": str(PETS), "epochs": 2, "batch_size": BATCH, "audit": False, "out": str(out / "run"), **changes}
    train(TrainConfig(**values), Silent())
    return history_rates(out / "run")


def bare(backbone: str, size: int, device: str, dtype: torch.dtype | None, batch: int, steps: int) -> float:
    """images/s of forward pass, backward pass and optimizer step on prepared tensors."""
    from torchvision import models

    model = (
        models.get_model(backbone, weights=None, num_classes=2).to(device, memory_format=torch.channels_last).train()
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.001, momentum=0.9, nesterov=True)
    inputs = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(2, (batch,), device=device)
    started = 0.0
    for step in range(steps + 3):
        if step == 3:
            synchronize(device)
            started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
    synchronize(device)
    return batch * steps / (time.perf_counter() - started)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def augmentation_seconds(preset: str) -> float:
    """Core time of one image's augmentation, from the cached working image to the network's input."""
    preprocessing = build_preprocessing((224, 224))
    working = load_working(next((PETS / "train").rglob("*.jpg")), preprocessing)
    augment = build_augment(preset, preprocessing)
    started = time.process_time()
    for seed in range(200):
        augment(working, seed)
    return (time.process_time() - started) / 200


def bound(folder: Path) -> None:
    build_machine("cpu", "fp32", None)  # raises the malloc thresholds, for both
    augmentation = augmentation_seconds("standard")
    print(f"augmentation standard: {1000 * augmentation:.2f} ms of core time per image")
    loops, mine = [], []
    for _ in range(ROUNDS):
        loops.append(bare("mobilenet_v2", 224, "cpu", None, BATCH, 12))
        mine.append(ours(folder)[1])
    loop = show("bare loop on ready tensors", loops)
    limit = 1 / (1 / loop + augmentation)
    print(f"bound: {limit:.1f} images/s")
    print(f"ratio to the bound: {show('tl train, second epoch', mine) / limit:.2f}")


def peers(folder: Path) -> None:
    rates: dict[str, list[float]] = {name: [] for name in RATES}
    for _ in range(ROUNDS):
        for name, measured in rates.items():
            done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True)
            if done.returncode:
                print(f"{name}: not measured ({done.stderr.strip().splitlines()[-1]})")
            else:
                measured.append(float(done.stdout.split()[-1]))
    middle = {name: show(name, measured) for name, measured in rates.items() if measured}
    for name in ("fastai", "transformers"):
        if name in middle:
            print(f"tl / {name}: {middle['tl'] / middle[name]:.2f}")


def tl_rate(folder: Path) -> float:
    """The second epoch of `tl train`; the first epoch also decodes and fills the cache."""
    return ours(folder)[1]


def fastai_rate(folder: Path) -> float:
    """One epoch of full fine-tuning with fastai's defaults, which always include reading and augmentation."""
    from fastai.vision.all import CrossEntropyLossFlat, ImageDataLoaders, Learner, Resize, aug_transforms, models

    loaders = ImageDataLoaders.from_folder(
        PETS, train="train", valid="val", item_tfms=Resize(224), batch_tfms=aug_transforms(), bs=BATCH
    )
    learner = Learner(loaders, models.mobilenet_v2(num_classes=2), loss_func=CrossEntropyLossFlat())
    started = time.perf_counter()
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, cbs=no_validation())
    return len(loaders.train_ds) / (time.perf_counter() - started)


def no_validation():
    from fastai.callback.core import Callback, CancelValidException

    class NoValidation(Callback):
        def before_validate(self):
            raise CancelValidException

    return NoValidation()


def transformers_rate(folder: Path) -> float:
    """One epoch of transformers' Trainer with its defaults and torchvision's standard training transforms."""
    from torchvision import datasets, models, transforms
    from transformers import Trainer, TrainingArguments

    usual = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    normal = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = datasets.ImageFolder(PETS / "train", transforms.Compose([*usual, normal]))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = models.mobilenet_v2(num_classes=2)

        def forward(self, pixel_values, labels):
            logits = self.net(pixel_values)
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    def collate(rows):
        return {
            "pixel_values": torch.stack([image for image, _ in rows]),
            "labels": torch.tensor([label for _, label in rows]),
        }

    arguments = TrainingArguments(
        str(folder / "peer"), per_device_train_batch_size=BATCH, num_train_epochs=1, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(Model(), arguments, train_dataset=images, data_collator=collate)
    started = time.perf_counter()
    trainer.train()
    return len(images) / (time.perf_counter() - started)


# Each runs in its own process: `python benchmarks/train.py fastai` prints images/s.
RATES = {"tl": tl_rate, "fastai": fastai_rate, "transformers": transformers_rate}


def photos(folder: Path) -> None:
    """Measure the second epoch of `tl train` on 9 to 12 megapixel photos, with and without the cache."""
    data = folder / "photos"
    images = (SHARED / "data" / "large-photos").iterdir()
    originals = sorted(path for path in images if path.suffix.lower() in (".jpg", ".jpeg"))
    for split, copies in (("train", 8), ("val", 1)):
        for i in range(copies):
            for c, original in enumerate(originals):
                path = data / split / "ab"[c % 2] / f"{i}-{original.name}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(original)
    kept, decoded = [], []
    options = {"data": str(data), "image_size": 64, "backbone": "smallcnn", "method": "scratch", "epochs": 2}
    for _ in range(ROUNDS):
        kept.append(ours(folder, **options, cache="ram")[1])
        decoded.append(ours(folder, **options, cache="none")[1])
    ratio = show("kept in memory", kept) / show("decoded in every epoch", decoded)
    print(f"kept / decoded, second epoch, smallcnn at 64 px: {ratio:.1f}")


def synthetic(folder: Path) -> None:
    if not torch.cuda.is_available():
        print("synthetic: no CUDA device")
        return
    batch = 128
    rates, mine = [], []
    for _ in range(ROUNDS):
        rates.append(bare("resnet50", 224, "cuda", torch.bfloat16, batch, 50))
        options = {"backbone": "resnet50", "weights": "none", "augment": "standard", "batch_size": batch, "epochs": 3}
        mine.append(max(ours(folder, **options)[1:]))
    print(f"tl / synthetic: {show('tl train', mine) / show('synthetic data', rates):.2f}")


if __name__ == "__main__":
    np.random.seed(0)
    torch.manual_seed(0)
    parts = {"bound": bound, "peers": peers, "photos": photos, "synthetic": synthetic}
    with tempfile.TemporaryDirectory() as name:
        if sys.argv[1:2] and sys.argv[1] in RATES:
            print(RATES[sys.argv[1]](Path(name)))
        else:
            for part in sys.argv[1:] or parts:
                parts[part](Path(name))
