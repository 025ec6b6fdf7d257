"""Benchmark prediction on CUDA: tl from folder to CSV, onnxruntime alone, the decode bound, single optimizations.

    python benchmarks/predict_cuda.py IMAGES MODEL.onnx [MORE.onnx ...] [--fp16] [--device cuda] [--rounds 3]

IMAGES is a folder of JPEGs, MODEL.onnx a file written by `tl export`; `--fp16` also measures its half-precision
version. Rows, in alternating rounds:

- decode threads: reading, decoding and resizing with one thread per core, without a network.
- decode pool: the same in `--decode-processes` processes into shared memory, including their startup.
- run N: prepared uint8 batches of N, as `tl.runtime` passes them: arrays in pageable memory.
- run 64 x 2: the same from two threads on one session.
- bind N: IO binding, with the input copied from one buffer to device memory, and the output bound to the device.
- tl N: `tl.runtime`'s predictor with batches of N and those processes, from files to CSV rows; tl: with its default
  batch size; tl threads: the same without processes.
- graph N: IO binding, captured as a CUDA graph, with a batch of fixed size. tensorrt N: `run` on the TensorRT provider,
  if it is installed. Both run in separate rounds at the end, because sessions that capture graphs made other sessions
  five times slower on an H100.

The bound is the smaller of the better decoding rate and the best rate on prepared batches. `--device cpu` tests this
script without a GPU.
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
from tl.runtime.decode_pool import DecodePool
from tl.runtime.devices import usable_cores
from tl.runtime.imaging.pipeline import Preparer, load_input
from tl.runtime.model_file.contract import parse_contract
from tl.runtime.output.writers import open_writer
from tl.runtime.predictor import CUDA_BATCH
from tl.runtime.prefetch import prefetch_map

OUTPUT = "probabilities"
Ways = dict[str, Callable[[float], float]]  # fraction of the images -> images/s


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--fp16", action="store_true")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--count", type=int, default=4096, help="images from files; named again where there are fewer")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decode-processes", type=int, default=usable_cores())
    parser.add_argument("--graphs", action="store_true", help="measure CUDA graphs too")
    options = parser.parse_args()
    found = sorted(map(str, options.images.rglob("*.jpg")))
    paths = list(itertools.islice(itertools.cycle(found), options.count))
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None and options.device == "cuda":
        preload()
    decode: dict[Any, dict[str, float]] = {}  # measured once per preprocessing
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            report(model, paths, options, decode)
            if options.fp16:
                half = Path(folder) / f"{model.stem}-fp16.onnx"
                write_half(model, half)
                report(half, paths, options, decode)


def write_half(model: Path, out: Path) -> None:
    """Write the graph of `tl export --precision fp16` with the fp32 file's contract: only its speed matters here."""
    import onnx

    from tl.exporter.quantization import to_fp16

    original = onnx.load(model)
    half = to_fp16(original)
    onnx.helper.set_model_props(half, {prop.key: prop.value for prop in original.metadata_props})
    onnx.save(half, out)


def report(model: Path, paths: list[str], options: argparse.Namespace, decode: dict[Any, dict[str, float]]) -> None:
    """Run all variants in turn, and print the median and spread of each."""
    device, processes = options.device, options.decode_processes
    print(f"\n{model.name}, {len(paths)} images, {os.cpu_count()} cores, {device}", flush=True)
    preprocessing = parse_contract(
        open_session(model, "cpu").get_modelmeta().custom_metadata_map["tl.contract"], model.name
    ).preprocessing
    with ThreadPoolExecutor() as pool:
        inputs = np.stack(list(pool.map(lambda path: load_input(path, preprocessing), paths[:2048])))
    if preprocessing not in decode:
        decode[preprocessing] = take_turns(
            {
                "decode threads": lambda share: decode_rate(some(paths, share / 8), preprocessing),
                "decode pool": lambda share: pool_rate(some(paths, share), preprocessing, processes),
            },
            options.rounds,
        )
    with contextlib.ExitStack() as stack:
        ways = dict(ready_ways(model, inputs, device, options.batches))

        def tl_way(size: int | None, processes: int, part: float = 1.0) -> Callable[[float], float]:
            # A separate session: cuDNN selects kernels again whenever the batch size changes.
            predictor = stack.enter_context(tl.runtime.load(model, device=device, decode_processes=processes))
            return lambda share: tl_rate(predictor, some(paths, part * share), size)

        ways |= {f"tl {size}": tl_way(size, processes) for size in options.batches if size != CUDA_BATCH}
        ways |= {"tl": tl_way(None, processes), "tl threads": tl_way(None, 0, 1 / 8)}
        middle = take_turns(ways, options.rounds)
    if device == "cuda" and options.graphs:
        middle |= take_turns(dict(special_ways(model, inputs, options.batches)), options.rounds)
    decoded = max((value, name) for name, value in decode[preprocessing].items())
    ready = max((value, name) for name, value in middle.items() if not name.startswith("tl"))
    bound, which = min(ready, decoded)
    print(f"bound {bound:.0f} ({which}); tl reaches {middle['tl'] / bound:.2f} of it", flush=True)


def some(paths: list[str], share: float) -> list[str]:
    return paths[: max(1, round(len(paths) * share))]


def take_turns(ways: Ways, rounds: int) -> dict[str, float]:
    """Median rate of each variant over alternating rounds, after a short warm-up round."""
    rates: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for name, way in list(ways.items()):
            try:
                rates.setdefault(name, []).append(way(1.0 if number else 0.125))
            except Exception as error:  # a variant that this GPU or build does not support
                print(f"{name:>14}: {type(error).__name__}: {str(error).splitlines()[0][:150]}", flush=True)
                del ways[name], rates[name]
        if number == 0:
            rates = {}
    for name, values in rates.items():
        print(
            f"{name:>14}: {statistics.median(values):8.0f} images/s ({min(values):.0f} to {max(values):.0f})",
            flush=True,
        )
    return {name: statistics.median(values) for name, values in rates.items()}


def ready_ways(
    model: Path, inputs: Any, device: str, sizes: list[int]
) -> Iterator[tuple[str, Callable[[float], float]]]:
    """Variants on prepared batches, each a function that returns images/s."""
    for size in sizes:
        batches, session = split(inputs, size), open_session(model, device)
        yield f"run {size}", lambda share, b=batches, s=session: run_rate(s, b)
        yield f"bind {size}", lambda share, b=batches, s=session: bound_rate(s, b, device)
        if size == CUDA_BATCH:
            yield f"run {size} x 2", lambda share, b=batches, s=session: threads_rate(s, b, 2)


def special_ways(model: Path, inputs: Any, sizes: list[int]) -> Iterator[tuple[str, Callable[[float], float]]]:
    """Variants whose sessions disturb others."""
    for size in sizes:
        batches = split(inputs, size)
        graph = open_session(model, "cuda", enable_cuda_graph="1")
        yield f"graph {size}", lambda share, b=batches, g=graph: bound_rate(g, b, "cuda")
        if "TensorrtExecutionProvider" in onnxruntime.get_available_providers() and find_tensorrt():
            tensorrt = onnxruntime.InferenceSession(model, providers=["TensorrtExecutionProvider"])
            yield f"tensorrt {size}", lambda share, b=batches, t=tensorrt: run_rate(t, b)


def split(inputs: Any, size: int) -> list[Any]:
    return [inputs[i : i + size] for i in range(0, len(inputs) - size + 1, size)]


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
    """Use the same buffers for every batch, as a CUDA graph requires."""
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


def decode_rate(paths: list[str], preprocessing: Any) -> float:
    started = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda path: load_input(path, preprocessing), paths):
            pass
    return len(paths) / (time.perf_counter() - started)


def pool_rate(paths: list[str], preprocessing: Any, processes: int) -> float:
    """Use the pool as `tl.runtime` does, but discard the decoded images."""
    started = time.perf_counter()
    size = CUDA_BATCH
    with DecodePool(Preparer((preprocessing,)), processes, batch_size=size, hashes=False) as pool:
        chunks = (pool.submit(paths[i : i + size]) for i in range(0, len(paths), size))
        for _ in prefetch_map(lambda chunk: pool.release(chunk.result()), chunks, workers=1, ahead=pool.slots - 1):
            pass
        return len(paths) / (time.perf_counter() - started)


def tl_rate(predictor: Any, paths: list[str], batch_size: int | None) -> float:
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        with open_writer(Path(out) / "rows.csv", predictor.fields) as writer:
            for result in predictor.predict_iter(paths, batch_size=batch_size):
                writer.write(result)
        return len(paths) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
