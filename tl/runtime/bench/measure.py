"""Measure a model file's speed: network by batch size, threads and device; decoding; and both together.

Selects what to measure in the available time, and recommends settings from the results. `works` implements the
measurements.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tl.errors import DataError, DeviceError, ModelFileError
from tl.runtime.bench.works import (
    PHONE_WH,
    Images,
    Setting,
    Timing,
    Work,
    decode_works,
    minimal_seconds,
    network_works,
    sample_jpeg,
    time_works,
    together_work,
)
from tl.runtime.devices import installed_wheels, usable_cores
from tl.runtime.engines.onnxruntime import cuda_fault
from tl.runtime.engines.openvino import openvino_fault, openvino_version
from tl.runtime.providers import GPU_WHEEL, parse_device
from tl.runtime.session import Session
from tl.runtime.sources.paths import find_images

ROUNDS = 3
# Number of images kept in memory for measuring: evenly sampled from a folder, or synthetic.
MAX_IMAGES, MADE_UP_IMAGES = 16, 4
# Maximum share of the time for the minimum number of runs of all settings; the rest is used for more runs.
_MINIMAL_SHARE = 0.6


class Progress(Protocol):
    """Interface for progress reports."""

    def start(self, task: str, total: int, unit: str) -> None:
        """Start a task."""

    def advance(self) -> None:
        """Complete a step."""


@dataclass(frozen=True)
class Row:
    """One setting and its speed."""

    setting: Setting
    timing: Timing


@dataclass(frozen=True)
class Bench:
    """Results of a benchmark. `skipped`: settings left out for lack of time.

    `faults`: device -> why it was not measured although what it needs is installed.
    """

    model: str
    input_hw: tuple[int, int]
    cores: int
    onnxruntime: str
    images: Images
    rounds: int
    rows: tuple[Row, ...]
    skipped: tuple[Setting, ...]
    faults: Mapping[str, str]


def run_bench(
    model: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    image_wh: tuple[int, int] = PHONE_WH,
    device: str = "auto",
    threads: int | None = None,
    seconds: float = 10.0,
    progress: Progress | None = None,
) -> Bench:
    """Measure a model file for about `seconds`, excluding loading.

    `images`: a folder of images; without one, synthetic JPEGs of `image_wh` pixels are used. "auto" measures the CPU,
    and OpenVINO and CUDA if they work. `threads`: maximum number of concurrent threads, None for all usable cores.
    Raises `DataError` if no image can be read, and the errors of `load`.
    """
    devices, faults = _devices(model, device)
    session = Session(model, device="cpu", threads=1)
    if session.contract is None:
        raise ModelFileError(f"{session.path}: contains no contract")
    preprocessing = session.contract.preprocessing
    if preprocessing.chooses and images is None:
        fault = "chooses channels or pages of a file, which generated images do not have"
        raise DataError(f"{session.path}: {fault}: give a folder of images", options=["images"])
    samples = _made_up(image_wh) if images is None else _given(images)
    samples, inputs = samples.readable(preprocessing)
    threads = threads or usable_cores()
    works: dict[Setting, Work] = {}
    for name in devices:
        works |= network_works(session, inputs, name, threads)
    works |= decode_works(samples, preprocessing, threads)
    facts = session.contract.landmarks
    # Synthetic images have no boxes.
    if session.contract.boxes is None and (facts is None or facts.region == "whole"):
        works |= dict(together_work(session.contract, session.path, samples, name, threads) for name in devices)
    kept = _affordable(works, seconds)
    rounds, timings = _time(list(kept.values()), seconds, progress)
    return Bench(
        model=session.path,
        input_hw=preprocessing.input_hw,
        cores=usable_cores(),
        onnxruntime=", ".join(f"{name} {version}" for name, version in _engine_versions().items()),
        images=samples,
        rounds=rounds,
        rows=tuple(Row(*measured) for measured in zip(kept, timings, strict=True)),
        skipped=tuple(setting for setting in works if setting not in kept),
        faults=faults,
    )


def _engine_versions() -> dict[str, str]:
    version = openvino_version()
    return {**installed_wheels(), **({"openvino": version} if version else {})}


def _devices(model: str | os.PathLike[str], device: str) -> tuple[list[str], dict[str, str]]:
    """Return the devices to measure, and why "auto" leaves out some that are installed."""
    kind, _ = parse_device(device)
    if kind != "auto":
        return [device], {}
    devices, faults = ["cpu"], {}
    if openvino_fault() is None:
        try:
            Session(model, device="openvino", threads=1)
            devices.append("openvino")
        except DeviceError as error:
            faults["openvino"] = str(error)
    fault = cuda_fault()
    if fault is None:
        devices.append("cuda")
    elif GPU_WHEEL in installed_wheels():
        faults["cuda"] = fault
    return devices, faults


def _given(folder: str | os.PathLike[str]) -> Images:
    paths = find_images([folder]).paths
    if not paths:
        raise DataError(f"{os.fspath(folder)}: no images found in it")
    taken = [paths[i * len(paths) // MAX_IMAGES] for i in range(MAX_IMAGES)] if len(paths) > MAX_IMAGES else paths
    return Images(os.fspath(folder), tuple(_read(path) for path in taken))


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""  # counted as unreadable, like images that cannot be decoded


def _made_up(size_wh: tuple[int, int]) -> Images:
    width, height = size_wh
    contents = tuple(sample_jpeg(size_wh, seed) for seed in range(MADE_UP_IMAGES))
    return Images(f"generated, {width}x{height} JPEG", contents)


def _affordable(works: Mapping[Setting, Work], seconds: float) -> dict[Setting, Work]:
    """Select batches of one, decoding and both together; add larger batches while there is time for all rounds."""
    kept = {setting for setting in works if setting.part != "network" or setting.batch_size == 1}
    spent = minimal_seconds([works[setting] for setting in kept], ROUNDS)
    for setting in sorted(set(works) - kept, key=lambda setting: setting.batch_size or 0):
        spent += minimal_seconds([works[setting]], ROUNDS)
        if spent > _MINIMAL_SHARE * seconds:
            break
        kept.add(setting)
    return {setting: work for setting, work in works.items() if setting in kept}


def _time(works: list[Work], seconds: float, progress: Progress | None) -> tuple[int, list[Timing]]:
    rounds = ROUNDS if minimal_seconds(works, ROUNDS) <= seconds else 1
    if progress is None:
        return rounds, time_works(works, seconds=seconds, rounds=rounds)
    progress.start("measuring", rounds * len(works), "steps")
    return rounds, time_works(works, seconds=seconds, rounds=rounds, advance=progress.advance)


_ON_CPU = ("cpu", "openvino")
Bound = Literal["decoding", "network", "both"]
# A simpler setting is preferred if it is slower by less than this share, which is within the variation between rounds.
_AS_GOOD = 0.05
_UNSTEADY = 0.2
# Between these time shares, neither decoding nor the network is reported as the limit.
_EVEN = (0.4, 0.6)


@dataclass(frozen=True)
class Advice:
    """Recommendation. `many`: setting for many images. `one`: for one image at a time.

    `decoding_share`: decoding's share of the time per image, 0..1. `lines`: the recommendation as sentences.
    """

    many: Setting
    one: Setting
    bound: Bound
    decoding_share: float
    lines: tuple[str, ...]


def advise(bench: Bench) -> Advice:
    """Recommend batch size, threads, hint and device, and state whether decoding or the network limits the speed."""
    network = [row for row in bench.rows if row.setting.part == "network"]
    has_bf16 = any(row.setting.precision == "bf16" for row in network)
    # `load` computes such a file in bf16 there, so fp32 is shown only for comparison.
    network = [row for row in network if not has_bf16 or row.setting.precision != "fp32"]
    many, one = _for_many(network), _for_one(network)
    decode = max((row for row in bench.rows if row.setting.part == "decode"), key=lambda row: row.setting.threads)
    share = _decoding_share(decode, many)
    bound: Bound = "decoding" if share > _EVEN[1] else "network" if share < _EVEN[0] else "both"
    lines = [_many_line(many), _one_line(one), _bound_line(bound, decode, many, share)]
    lines += [_together_line(row) for row in bench.rows if row.setting.part == "together"]
    return Advice(many.setting, one.setting, bound, share, (*lines, *_cautions(bench)))


def _for_many(rows: Sequence[Row]) -> Row:
    """Return the simplest setting not clearly slower than the fastest: small batches, then `load`'s default hint."""
    best = max((row.timing for row in rows), key=lambda timing: timing.images_per_s)
    enough = (1 - _AS_GOOD) * best.images_per_s
    good = [row for row in rows if row.timing.images_per_s >= enough or row.timing.fastest >= best.slowest]
    return min(
        good,
        key=lambda row: (row.setting.batch_size or 1, row.setting.hint == "latency", row.setting.device != "cpu"),
    )


def _for_one(rows: Sequence[Row]) -> Row:
    """Return the setting with the fewest threads among those with the lowest latency for one image, with one caller."""
    alone = [row for row in rows if row.setting.batch_size == 1 and _is_alone(row.setting)]
    best = min(row.timing.p50_ms for row in alone)
    return min(
        (row for row in alone if row.timing.p50_ms <= (1 + _AS_GOOD) * best),
        key=lambda row: (row.setting.threads, row.setting.device != "cpu"),
    )


def _is_alone(setting: Setting) -> bool:
    return setting.hint != "throughput" or setting.threads == 1


def _decoding_share(decode: Row, network: Row) -> float:
    """Return decoding's share of the time per image.

    On the CPU, decoding and the network share the cores. A GPU runs in parallel, and the slower of the two is the
    bottleneck.
    """
    slow, fast = 1 / decode.timing.images_per_s, 1 / network.timing.images_per_s
    return slow / (slow + fast)


def _many_line(row: Row) -> str:
    setting, rate = row.setting, row.timing.images_per_s
    batch = f", predict_iter(batch_size={setting.batch_size})" if (setting.batch_size or 1) > 1 else ", single images"
    return f"many images: load({_arguments(setting)}){batch}: {rate:.0f} images/s (network only{_in(setting)})"


def _one_line(row: Row) -> str:
    timing = row.timing
    return (
        f"one image at a time: load({_arguments(row.setting)}): {timing.p50_ms:.1f} ms "
        f"(network only{_in(row.setting)}; p99 {timing.p99_ms:.1f} ms)"
    )


def _in(setting: Setting) -> str:
    return "" if setting.precision is None else f", in {setting.precision}"


def _arguments(setting: Setting) -> str:
    words = ["model", f'device="{setting.device}"']
    if setting.device in _ON_CPU:
        words += [f"threads={setting.threads}", f'hint="{setting.hint}"']
    return ", ".join(words)


def _bound_line(bound: Bound, decode: Row, network: Row, share: float) -> str:
    rates = (
        f"{decode.timing.images_per_s:.0f} images/s for decoding and resizing with "
        f"{decode.setting.threads} threads, {network.timing.images_per_s:.0f} for the network"
    )
    cures = {
        "decoding": "use smaller images or more cores; a faster network would help little",
        "network": "use a smaller network, more cores or a GPU; smaller images would help little",
        "both": "speeding up either one helps",
    }
    on_gpu = network.setting.device not in _ON_CPU
    says = "" if on_gpu else f", decoding takes {share:.0%} of the time per image"
    bounds = {"decoding": "decoding", "network": "the network", "both": "decoding and the network equally"}
    return f"the bottleneck is {bounds[bound]}: {rates}{says}; {cures[bound]}"


def _together_line(row: Row) -> str:
    setting, timing = row.setting, row.timing
    return (
        f"decoding and network together, measured on {setting.place} as tl predict does it: "
        f"{timing.images_per_s:.0f} images/s "
        f"({timing.slowest:.0f} to {timing.fastest:.0f})"
    )


def _cautions(bench: Bench) -> list[str]:
    says = []
    if bench.rounds == 1:
        says.append("there was time for only one round: increase seconds")
    spreads = [row.timing.fastest / row.timing.slowest - 1 for row in bench.rows]
    unsteady = sum(spread > _UNSTEADY for spread in spreads)
    if unsteady:
        says.append(
            f"{unsteady} of {len(spreads)} measurements differ by more than {_UNSTEADY:.0%} between rounds: "
            "other programs are running, or the measuring time is too short (increase seconds)"
        )
    return says
