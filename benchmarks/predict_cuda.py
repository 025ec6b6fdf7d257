"""Prediction on CUDA: tl from folder to CSV, beside onnxruntime alone and the decode bound, and what each trick brings.

    TL_SHARED=... python benchmarks/predict_cuda.py MODEL.onnx [MORE.onnx ...] [--device cuda]

MODEL.onnx is a file of `tl export`; give its fp16 version too. Rows, in alternating rounds:

- decode: reading, decoding and resizing on all cores, without a network.
- run N: ready uint8 batches of N, as `tl.runtime` passes them: arrays in ordinary memory.
- bind N: IO binding, input in device memory and copied there from one buffer, output bound to the device.
- graph N: the same, captured as a CUDA graph, with a batch of fixed size.
- tensorrt N: `run` on the TensorRT provider, where it is installed.
- tl: `tl.runtime`'s predictor, files to rows of a CSV.

The bound is the smaller of decode and the best of the ready batches. `--device cpu` tries this script without a GPU.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import tl.runtime
from tl.runtime.contract import parse_contract
from tl.runtime.preprocess import load_input
from tl.runtime.writers import open_writer

SHARED = Path(os.environ["TL_SHARED"])
ROUNDS = 3
BATCHES = (16, 32, 64, 128)
OUTPUT = "probabilities"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--repeat", type=int, default=4, help="how often each picture is named")
    options = parser.parse_args()
    paths = sorted(map(str, (SHARED / "data" / "pacs-cartoon").rglob("*.jpg"))) * options.repeat
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None and options.device == "cuda":
        preload()
    for model in options.models:
        report(model, paths, options.device)


def report(model: Path, paths: list[str], device: str) -> None:
    """Every way in turn, three times; then the middle of each with its spread."""
    print(f"\n{model.name}, {len(paths)} pictures, {os.cpu_count()} cores, {device}")
    recipe = parse_contract(
        open_session(model, "cpu").get_modelmeta().custom_metadata_map["tl.contract"], model.name
    ).recipe
    with ThreadPoolExecutor() as pool:
        inputs = np.stack(list(pool.map(lambda path: load_input(path, recipe), paths[:2048])))
    ways: dict[str, Callable[[], float]] = {"decode": lambda: decode_rate(paths, recipe)}
    ways |= dict(ready_ways(model, inputs, device))
    ways["tl"] = lambda: tl_rate(model, paths, device)
    rates: dict[str, list[float]] = {}
    for name, _ in itertools.product(ways, range(ROUNDS + 1)):  # the first of each warms up
        rates.setdefault(name, []).append(ways[name]())
    middle = {name: statistics.median(values[1:]) for name, values in rates.items()}
    for name, value in middle.items():
        print(f"{name:>12}: {value:8.0f} images/s ({min(rates[name][1:]):.0f} to {max(rates[name][1:]):.0f})")
    ready = max(value for name, value in middle.items() if name not in ("decode", "tl"))
    print(
        f"bound {min(ready, middle['decode']):.0f}; tl reaches {middle['tl'] / min(ready, middle['decode']):.2f} of it"
    )


def ready_ways(model: Path, inputs: Any, device: str) -> Iterator[tuple[str, Callable[[], float]]]:
    """Ways through ready batches, each a function that gives images/s."""
    plain = open_session(model, device)
    for size in BATCHES:
        batches = [inputs[i : i + size] for i in range(0, len(inputs) - size + 1, size)]
        yield f"run {size}", lambda b=batches: run_rate(plain, b)
        yield f"bind {size}", lambda b=batches: bound_rate(plain, b, device)
        if device == "cuda":
            graph = open_session(model, device, enable_cuda_graph="1")
            yield f"graph {size}", lambda b=batches, g=graph: bound_rate(g, b, device)
            if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
                tensorrt = onnxruntime.InferenceSession(model, providers=["TensorrtExecutionProvider"])
                yield f"tensorrt {size}", lambda b=batches, t=tensorrt: run_rate(t, b)


def open_session(model: Path, device: str, **cuda: str) -> onnxruntime.InferenceSession:
    provider: Any = ("CUDAExecutionProvider", {"use_tf32": "0", **cuda}) if device == "cuda" else "CPUExecutionProvider"
    session = onnxruntime.InferenceSession(model, providers=[provider])
    if device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise SystemExit("CUDA cannot be used here: tl doctor says why")
    return session


def run_rate(session: onnxruntime.InferenceSession, batches: list[Any]) -> float:
    started = time.perf_counter()
    for batch in batches:
        session.run([OUTPUT], {"images": batch})
    return sum(map(len, batches)) / (time.perf_counter() - started)


def bound_rate(session: onnxruntime.InferenceSession, batches: list[Any], device: str) -> float:
    """The same buffers for every batch, which a CUDA graph needs too."""
    classes = session.run([OUTPUT], {"images": batches[0]})[0].shape[1] if device == "cpu" else None
    images = onnxruntime.OrtValue.ortvalue_from_numpy(batches[0], device, 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input("images", images)
    shape = [len(batches[0]), classes or session.get_outputs()[0].shape[1]]
    output = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, device, 0)
    binding.bind_ortvalue_output(OUTPUT, output)
    session.run_with_iobinding(binding)  # captures the graph
    started = time.perf_counter()
    for batch in batches:
        images.update_inplace(np.ascontiguousarray(batch))
        session.run_with_iobinding(binding)
        output.numpy()
    return sum(map(len, batches)) / (time.perf_counter() - started)


def decode_rate(paths: list[str], recipe: Any) -> float:
    started = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda path: load_input(path, recipe), paths):
            pass
    return len(paths) / (time.perf_counter() - started)


def tl_rate(model: Path, paths: list[str], device: str) -> float:
    with tl.runtime.load(model, device=device) as predictor, tempfile.TemporaryDirectory() as out:
        predictor.predict_batch(paths[:64])
        started = time.perf_counter()
        with open_writer(Path(out) / "rows.csv", predictor.columns) as writer:
            for result in predictor.predict_iter(paths):
                writer.write(result)
        return len(paths) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
