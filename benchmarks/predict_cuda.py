"""Prediction on CUDA: tl from folder to CSV, beside onnxruntime alone and the decode bound, and what each trick brings.

    python benchmarks/predict_cuda.py IMAGES MODEL.onnx [MORE.onnx ...] [--fp16] [--device cuda] [--rounds 3]

IMAGES is a folder of JPEGs, MODEL.onnx a file of `tl export`; `--fp16` measures its half-precision version too.
Rows, in alternating rounds:

- decode: reading, decoding and resizing on all cores, without a network.
- run N: ready uint8 batches of N, as `tl.runtime` passes them: arrays in ordinary memory.
- run N x T: the same from T threads on one session.
- bind N: IO binding, input in device memory and copied there from one buffer, output bound to the device.
- graph N: the same, captured as a CUDA graph, with a batch of fixed size.
- nhwc / heuristic N: IO binding with the provider's NHWC layout; with cuDNN's heuristic instead of its search.
- tensorrt N: `run` on the TensorRT provider, where it is installed.
- tl N: `tl.runtime`'s predictor with batches of N, files to rows of a CSV; tl: as it comes.

The bound is the smaller of decode and the best of the ready batches. `--device cpu` tries this script without a GPU.
"""

import argparse
import contextlib
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
from tl.runtime.imaging.pipeline import load_input
from tl.runtime.model_file.contract import parse_contract
from tl.runtime.output.writers import open_writer

OUTPUT = "probabilities"
Ways = dict[str, Callable[[], float]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--fp16", action="store_true")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--count", type=int, default=4096, help="images from files; named again where there are fewer")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = sorted(map(str, options.images.rglob("*.jpg")))
    paths = list(itertools.islice(itertools.cycle(found), options.count))
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None and options.device == "cuda":
        preload()
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            report(model, paths, options)
            if options.fp16:
                half = Path(folder) / f"{model.stem}-fp16.onnx"
                write_half(model, half)
                report(half, paths, options)


def write_half(model: Path, out: Path) -> None:
    """The graph that `tl export --precision fp16` makes, with the fp32 file's contract: only its speed counts here."""
    import onnx

    from tl.exporter.quantization import to_fp16

    original = onnx.load(model)
    half = to_fp16(original)
    onnx.helper.set_model_props(half, {prop.key: prop.value for prop in original.metadata_props})
    onnx.save(half, out)


def report(model: Path, paths: list[str], options: argparse.Namespace) -> None:
    """Every way in turn; then the middle of each with its spread."""
    device = options.device
    print(f"\n{model.name}, {len(paths)} images, {os.cpu_count()} cores, {device}", flush=True)
    recipe = parse_contract(
        open_session(model, "cpu").get_modelmeta().custom_metadata_map["tl.contract"], model.name
    ).recipe
    with ThreadPoolExecutor() as pool:
        inputs = np.stack(list(pool.map(lambda path: load_input(path, recipe), paths[:2048])))
    with contextlib.ExitStack() as stack:
        ways: Ways = {"decode": lambda: decode_rate(paths, recipe)}
        for name, way in ready_ways(model, inputs, device, options.batches):
            ways[name] = way
        predictor = stack.enter_context(tl.runtime.load(model, device=device))
        for size in options.batches:
            ways[f"tl {size}"] = lambda n=size: tl_rate(predictor, paths, n)
        ways["tl"] = lambda: tl_rate(predictor, paths, None)
        rates: dict[str, list[float]] = {}
        for number in range(options.rounds + 1):
            for name, way in list(ways.items()):
                try:
                    rates.setdefault(name, []).append(way())
                except Exception as error:  # a way that this GPU or build lacks
                    print(f"{name:>14}: {type(error).__name__}: {str(error).splitlines()[0][:150]}", flush=True)
                    del ways[name], rates[name]
            if number == 0:
                rates = {}  # the first round warms up
    middle = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in middle.items():
        print(f"{name:>14}: {value:8.0f} images/s ({min(rates[name]):.0f} to {max(rates[name]):.0f})")
    ready = max((value, name) for name, value in middle.items() if name != "decode" and not name.startswith("tl"))
    bound = min(ready[0], middle["decode"])
    which = "decode" if bound == middle["decode"] else ready[1]
    print(f"bound {bound:.0f} ({which}); tl reaches {middle['tl'] / bound:.2f} of it", flush=True)


def ready_ways(model: Path, inputs: Any, device: str, sizes: list[int]) -> Iterator[tuple[str, Callable[[], float]]]:
    """Ways through ready batches, each a function that gives images/s."""
    plain = open_session(model, device)
    cuda = device == "cuda"
    others = {}
    if cuda:
        others = {
            "nhwc": open_session(model, device, prefer_nhwc="1"),
            "heuristic": open_session(model, device, cudnn_conv_algo_search="HEURISTIC"),
        }
    for size in sizes:
        batches = [inputs[i : i + size] for i in range(0, len(inputs) - size + 1, size)]
        yield f"run {size}", lambda b=batches: run_rate(plain, b)
        yield f"run {size} x 4", lambda b=batches: threads_rate(plain, b, 4)
        yield f"bind {size}", lambda b=batches: bound_rate(plain, b, device)
        for name, session in others.items():
            yield f"{name} {size}", lambda b=batches, s=session: bound_rate(s, b, device)
        if cuda:
            graph = open_session(model, device, enable_cuda_graph="1")
            yield f"graph {size}", lambda b=batches, g=graph: bound_rate(g, b, device)
            if "TensorrtExecutionProvider" in onnxruntime.get_available_providers() and find_tensorrt():
                tensorrt = onnxruntime.InferenceSession(model, providers=["TensorrtExecutionProvider"])
                yield f"tensorrt {size}", lambda b=batches, t=tensorrt: run_rate(t, b)


def find_tensorrt() -> bool:
    import ctypes

    try:
        ctypes.CDLL("libnvinfer.so.10")
    except OSError:
        return False
    return True


def open_session(model: Path, device: str, **cuda: str) -> onnxruntime.InferenceSession:
    provider: Any = ("CUDAExecutionProvider", {"use_tf32": "0", **cuda}) if device == "cuda" else "CPUExecutionProvider"
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, settings, providers=[provider])
    if device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise SystemExit("CUDA cannot be used here: tl doctor says why")
    return session


def run_rate(session: onnxruntime.InferenceSession, batches: list[Any]) -> float:
    started = time.perf_counter()
    for batch in batches:
        session.run([OUTPUT], {"images": batch})
    return sum(map(len, batches)) / (time.perf_counter() - started)


def threads_rate(session: onnxruntime.InferenceSession, batches: list[Any], threads: int) -> float:
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        for _ in pool.map(lambda batch: session.run([OUTPUT], {"images": batch}), batches):
            pass
        return sum(map(len, batches)) / (time.perf_counter() - started)


def bound_rate(session: onnxruntime.InferenceSession, batches: list[Any], device: str) -> float:
    """The same buffers for every batch, which a CUDA graph needs too."""
    images = onnxruntime.OrtValue.ortvalue_from_numpy(batches[0], device, 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input("images", images)
    shape = [len(batches[0]), session.get_outputs()[0].shape[1]]
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


def tl_rate(predictor: Any, paths: list[str], batch_size: int | None) -> float:
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        with open_writer(Path(out) / "rows.csv", predictor.columns) as writer:
            for result in predictor.predict_iter(paths, batch_size=batch_size):
                writer.write(result)
        return len(paths) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
