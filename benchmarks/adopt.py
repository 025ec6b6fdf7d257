"""Compare adopted classifiers with the frameworks they come from, on the same images, each with its own preprocessing.

Exports a classifier from each peer to ONNX (dynamic and fixed batch), adopts it with `tl adopt`, and compares
`tl.runtime` with the peer's own pipeline from file to probabilities. All pipelines open images upright; they differ in
decoding and resizing. Runs with the Python created by benchmarks/peers.sh; `tl adopt` runs with the one in .venv.

    TL_SHARED=... .venv-peers/bin/python benchmarks/adopt.py [torchvision] [timm] [ultralytics] [transformers]

Without network access, only torchvision's classifier has trained weights. The others have random weights, with batch
norm and head fitted to a few images so that outputs differ between images; their labels are meaningless.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

os.environ["OMP_NUM_THREADS"] = "1"  # more threads do not help with one image at a time, and slow down busy machines
os.environ["YOLO_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
SHARED = Path(os.environ["TL_SHARED"])
TL = [str(Path(__file__).resolve().parents[1] / ".venv" / "bin" / "python"), "-m", "tl"]
CLASSES = 10
LOGIT_SPREAD = 1.5
Pipeline = Callable[[Path], np.ndarray]


def all_images() -> list[Path]:
    """ImageNet images of 224 px, cats and dogs of all sizes, and phone photos."""
    sets = {"imagenet-val-500": 10, "cats-dogs": 12, "large-photos": 1}
    return [
        path for name, step in sets.items() for path in sorted((SHARED / "data" / name).rglob("*.[jJ][pP]*"))[::step]
    ]


def upright(path: Path):
    """Open an image as transformers and Ultralytics do; torchvision and timm often ignore the orientation."""
    from PIL import Image, ImageOps

    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


# --- peers: export to `folder`, return the arguments of `tl adopt` and the peer's own pipeline


def torchvision(folder: Path, dynamic: bool) -> tuple[list[str], Pipeline]:
    import torch
    from safetensors.torch import load_file
    from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

    network = mobilenet_v2()
    network.load_state_dict(load_file(SHARED / "weights" / "mobilenet_v2.safetensors"))
    export_torch(network.eval(), folder / "m.onnx", 224, dynamic)
    entry = MobileNet_V2_Weights.IMAGENET1K_V1
    (folder / "names.txt").write_text("\n".join(entry.meta["categories"]), encoding="utf-8")
    transform = entry.transforms()

    @torch.no_grad()
    def run(path: Path) -> np.ndarray:
        return torch.softmax(network(transform(upright(path))[None]), 1).numpy()[0]

    return ["m.onnx", "--preset", "imagenet", "--labels", "names.txt"], run


def timm(folder: Path, dynamic: bool) -> tuple[list[str], Pipeline]:
    import timm as package
    import torch

    torch.manual_seed(0)
    network = package.create_model("resnet18", num_classes=CLASSES)
    enliven(network, network, network.fc, network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
    export_torch(network, folder / "m.onnx", 224, dynamic)
    config = {"architecture": "resnet18", "label_names": names(), "pretrained_cfg": network.pretrained_cfg}
    (folder / "config.json").write_text(json.dumps(config, default=str), encoding="utf-8")
    facts = package.data.resolve_data_config({}, model=network)
    transform = package.data.create_transform(**facts, is_training=False)

    @torch.no_grad()
    def run(path: Path) -> np.ndarray:
        return torch.softmax(network(transform(upright(path))[None]), 1).numpy()[0]

    return ["m.onnx", "--preset", "timm", "--config", "config.json"], run


def ultralytics(folder: Path, dynamic: bool) -> tuple[list[str], Pipeline]:
    import torch
    from ultralytics import YOLO

    torch.manual_seed(0)
    model = YOLO("yolo11n-cls.yaml", task="classify", verbose=False)
    network = model.model
    enliven(network, lambda x: network(x) if network.training else network(x)[1], network.model[-1].linear)
    model.model.names = dict(enumerate(f"class {i}" for i in range(len(model.model.names))))
    torch.save({"model": model.model.float()}, folder / "m.pt")
    model = YOLO(folder / "m.pt", task="classify", verbose=False)
    model.export(format="onnx", imgsz=224, dynamic=dynamic, simplify=False, verbose=False)

    def run(path: Path) -> np.ndarray:
        (result,) = model.predict(str(path), imgsz=224, verbose=False, device="cpu")
        return result.probs.data.cpu().numpy()

    return ["m.onnx", "--preset", "ultralytics"], run


def transformers(folder: Path, dynamic: bool) -> tuple[list[str], Pipeline]:
    import torch
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification, MobileNetV2ImageProcessor

    torch.manual_seed(0)
    labels = dict(enumerate(names()))
    config = MobileNetV2Config(id2label=labels, label2id={name: i for i, name in labels.items()})
    network = MobileNetV2ForImageClassification(config)
    processor = MobileNetV2ImageProcessor()
    enliven(network, lambda x: network(x).logits, network.classifier, processor.image_mean, processor.image_std)
    for part in network, processor:
        part.save_pretrained(folder)
    if dynamic:
        from optimum.exporters.onnx import main_export

        main_export(str(folder), folder, task="image-classification", do_validation=False)
    else:
        export_torch(Logits(network), folder / "model.onnx", 224, dynamic)

    @torch.no_grad()
    def run(path: Path) -> np.ndarray:
        return torch.softmax(network(**processor(upright(path), return_tensors="pt")).logits, 1).numpy()[0]

    return [".", "--preset", "huggingface-folder"], run


def enliven(network, logits_of, head, mean=(0, 0, 0), std=(1, 1, 1)) -> None:
    """Fit batch-norm statistics and the head's scale to a few images, in place; switches to evaluation mode."""
    import torch
    from PIL import Image

    paths = all_images()[::4]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path in paths])
    batch = torch.from_numpy((pixels / 255 - mean) / std).permute(0, 3, 1, 2).float()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean
    with torch.no_grad():
        network.train()
        logits_of(batch)
        network.eval()
        logits = logits_of(batch)
        scale = LOGIT_SPREAD / logits.std(0)
        head.weight *= scale[:, None]
        head.bias.copy_((head.bias - logits.mean(0)) * scale)


def Logits(network):  # noqa: N802  # the caller imports torch
    import torch

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x).logits

    return Module().eval()


def export_torch(network, path: Path, size: int, dynamic: bool) -> None:
    import torch

    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    example = (torch.zeros(2 if dynamic else 1, 3, size, size),)
    torch.onnx.export(network, example, path, dynamic_shapes=shapes, external_data=False, verbose=False)


def names() -> list[str]:
    return [f"class {i}" for i in range(CLASSES)]


# --- measurement


answers: dict[str, np.ndarray] = {}


def compare(name: str, dynamic: bool) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with quiet():
            arguments, peer = PEERS[name](folder, dynamic)
        paths = all_images()
        images = ["--images", str(SHARED / "data" / "cats-dogs")]
        adopted = [*TL, "adopt", *arguments, *images, "-o", "adopted.onnx", "--json"]
        report = json.loads(checked(adopted, folder))
        predicted = [*TL, "predict", *map(str, paths), "--model", "adopted.onnx", "--device", "cpu", "-o", "out.csv"]
        checked(predicted, folder)
        with (folder / "out.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        ours = np.array([[float(value) for key, value in row.items() if key.startswith("p:")] for row in rows])
        with quiet():
            if name not in answers:  # both exports contain the same network
                answers[name] = np.stack([peer(path) for path in paths])
    theirs = answers[name]
    same = (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()
    graph = max(report["parity"]["session_max_abs_diff"]["probabilities"], report["parity"]["pipeline_max_abs_diff"])
    worst = np.abs(ours - theirs).max(axis=1)
    cells = [name, "dynamic" if dynamic else "fixed at 1", report["opset"], f"{graph:.1e}", len(paths)]
    cells += [f"{worst.max():.1e}", f"{np.median(worst):.1e}", (worst > 1e-3).sum(), f"{same:.1%}"]
    cells.append(f"{theirs.max(axis=1).mean():.2f}")
    return "| " + " | ".join(map(str, cells)) + " |"


def checked(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[3]} failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


@contextmanager
def quiet() -> Iterator[None]:
    """The peers print to stdout, which is reserved for this script's table."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


PEERS = {"torchvision": torchvision, "timm": timm, "ultralytics": ultralytics, "transformers": transformers}


def main(asked: list[str]) -> None:
    columns = ["peer", "exported batch", "opset", "graph: max abs dp", "images"]
    columns += [
        "file to result: max abs dp",
        "median of the largest dp",
        "dp over 1e-3",
        "same label",
        "mean confidence",
    ]
    print("| " + " | ".join(columns) + " |", "|---" * len(columns) + "|", sep="\n", flush=True)
    for name in asked or PEERS:
        for dynamic in (True, False):
            print(compare(name, dynamic), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
