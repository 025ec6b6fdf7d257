"""Measure what the engines and precisions of a CPU are worth: onnxruntime and OpenVINO, fp32, bf16 and int8.

    python benchmarks/engines.py make FOLDER          runs and model files, from TL_SHARED/data/pacs-cartoon
    python benchmarks/engines.py alone MODEL [INT8]   the network alone: inputs in memory, one thread for each image
    python benchmarks/engines.py folder MODEL [INT8]  as tl predict: from a folder of images to the rows of a CSV

MODEL is a file of fp32, INT8 one from `tl export --precision int8`. bf16 is computed whether or not the file's contract
allows it: this measures what the gate of `tl export --precision bf16` would decide on. Rounds alternate between the
variants; medians are followed by the lowest and highest. Labels and probabilities are compared with onnxruntime in fp32
on the same photos. `make` also writes networks of random weights (-random), whose labels mean nothing. Each call takes
less than a minute; other programs disturb it, so run it with `nice -n -20`, or on an idle machine.
"""

import csv
import io
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROUNDS, SECONDS, COUNT = 3, 2.0, 421
SLOW = 0.06  # seconds for an image
TRAINED, RANDOM = ("mobilenet_v2", "efficientnet_lite0"), ("resnet50", "vit_b_16")


def photos() -> list[str]:
    """COUNT of the cartoons, evenly spread over the classes."""
    paths = sorted(map(str, (Path(os.environ["TL_SHARED"]) / "data" / "pacs-cartoon").rglob("*.jpg")))
    return [paths[i * len(paths) // COUNT] for i in range(COUNT)]


def make(folder: Path) -> None:
    data = Path(os.environ["TL_SHARED"]) / "data" / "pacs-cartoon" / "splits.csv"
    os.environ.setdefault("TL_WEIGHTS_DIR", str(Path(os.environ["TL_SHARED"]) / "weights"))

    def tl(*words: str | Path) -> None:
        subprocess.run([sys.executable, "-m", "tl", *map(str, words)], check=False)  # a refusal is a result too

    for name in TRAINED:
        run = folder / name
        tl("train", data, "--backbone", name, "--method", "features", "--out", run)
        for precision in ("fp32", "bf16", "int8"):
            tl("export", run, "-o", folder / f"{name}-{precision}.onnx", "--precision", precision)
    for name in RANDOM:
        make_random(name, folder)


def make_random(name: str, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from tl.exporter.export import export_pretrained
    from tl.progress import Silent
    from tl.trainer.models.backbones import build_classifier

    torch.manual_seed(0)
    weights = folder / f"{name}-random.safetensors"
    save_file({key: value.contiguous() for key, value in build_classifier(name).state_dict().items()}, weights)
    export_pretrained(name, str(weights), photos()[:4], folder / f"{name}-random.onnx", Silent())


def open_variants(plain: Path, int8: Path | None) -> dict:
    from tl.runtime.session import Session

    variants = {
        "onnxruntime fp32": (plain, "cpu", None),
        "openvino fp32": (plain, "openvino", "fp32"),
        "openvino bf16": (plain, "openvino", "bf16"),
    }
    if int8 is not None:
        variants |= {"onnxruntime int8": (int8, "cpu", None), "openvino int8": (int8, "openvino", None)}
    return {
        name: Session(path, device=device, threads=1, precision=precision)
        for name, (path, device, precision) in variants.items()
    }


def alone(sessions: dict) -> dict:
    """Return variant -> a function that measures images per second, with one caller for each core."""
    from tl.runtime.devices import usable_cores
    from tl.runtime.imaging.pipeline import load_input

    first = next(iter(sessions.values()))
    with ThreadPoolExecutor(usable_cores()) as pool:
        inputs = np.stack(list(pool.map(lambda path: load_input(path, first.contract.preprocessing), photos())))
    reference = compare(sessions, inputs)
    print(reference)

    def measure(session) -> float:
        ends = time.perf_counter() + SECONDS

        def call(number: int) -> int:
            done = 0
            while time.perf_counter() < ends:
                session.run(inputs[(number * 97 + done) % COUNT][None], ["probabilities"])
                done += 1
            return done

        with ThreadPoolExecutor(usable_cores()) as pool:
            started = time.perf_counter()
            return sum(pool.map(call, range(usable_cores()))) / (time.perf_counter() - started)

    return {name: lambda session=session: measure(session) for name, session in sessions.items()}


def compare(sessions: dict, inputs: np.ndarray) -> str:
    """Return the agreement of labels and the largest difference of probabilities for each variant.

    A slow network is compared on every eighth photo.
    """
    started = time.perf_counter()
    next(iter(sessions.values())).run(inputs[:1], ["probabilities"])
    inputs = inputs[:: 8 if time.perf_counter() - started > SLOW else 1]
    answers = {
        name: np.concatenate([session.run(image[None], ["probabilities"])[0] for image in inputs])
        for name, session in sessions.items()
    }
    wanted = answers["onnxruntime fp32"]
    lines = []
    for name, found in answers.items():
        same = int((found.argmax(1) == wanted.argmax(1)).sum())
        lines.append(f"{name:17} same label {same} of {len(inputs)}, max |dp| {np.abs(found - wanted).max():.2g}")
    return "\n".join(lines)


def folder(sessions: dict) -> dict:
    """Return variant -> a function that measures images per second from files to rows."""
    import tl.runtime

    paths = photos()

    def measure(session) -> float:
        with tl.runtime.load(session, device="cpu") as predictor:
            started = time.perf_counter()
            rows = csv.writer(io.StringIO())
            for result in predictor.predict_iter(paths):
                rows.writerow([result.path, result.label, *result.probabilities])
            return len(paths) / (time.perf_counter() - started)

    return {name: lambda session=session: measure(session) for name, session in sessions.items()}


def main(what: str, first: str, int8: str | None = None) -> None:
    if what == "make":
        Path(first).mkdir(parents=True, exist_ok=True)
        make(Path(first))
        return
    variants = {"alone": alone, "folder": folder}[what](open_variants(Path(first), int8 and Path(int8)))
    rates = {name: [] for name in variants}
    for name, measure in [*variants.items()] * ROUNDS:
        rates[name].append(measure())
    base = statistics.median(rates["onnxruntime fp32"])
    for name, values in rates.items():
        median = statistics.median(values)
        print(f"{name:17} {median:7.1f} images/s ({min(values):.1f} to {max(values):.1f}), {median / base:.2f} x")


if __name__ == "__main__":
    main(*sys.argv[1:])
