"""`tl bench`: measure how fast a model file runs on this machine and what limits its speed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl.commands.console import console_progress, show, show_json, warn
from tl.commands.model_files import check_model_files
from tl.commands.options import Device, Threads
from tl.errors import ConfigError

if TYPE_CHECKING:
    from tl.runtime.bench.measure import Advice, Bench, Row

_COLUMNS = (
    "part",
    "device",
    "hint",
    "threads",
    "batch",
    "images/s",
    "of rounds",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "runs",
)
_WORDS = 3  # text columns; numeric columns are right-aligned


def command(
    model: Annotated[Path, typer.Argument(help="Model file.", show_default=False)],
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to measure with. Default: generated images.")
    ] = None,
    image_size: Annotated[str, typer.Option(help="Size of the generated JPEGs, as WIDTHxHEIGHT.")] = "4000x3000",
    device: Device = "auto",
    threads: Threads = None,
    seconds: Annotated[float, typer.Option(min=0, help="Time for measuring in seconds, not counting loading.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print measurements and advice as JSON on stdout.")] = False,
) -> None:
    """Benchmark a model file (network, decoding, and both together) on the engines installed and recommend settings.

    Examples:
    - `tl bench beetles.onnx --images photos/`

    - `tl bench beetles.onnx --device cpu --seconds 60 --json > speed.json`

    Rows: network (runs on a batch in memory), decode (from encoded image to network input) and together (as in tl
    predict). With the throughput hint, each thread processes its own batch; with latency, all threads share one.
    images/s is the median over interleaved rounds, followed by the lowest and highest. p50, p90 and p99 are latencies
    of single runs.
    """
    from tl.runtime.bench.measure import advise, run_bench

    check_model_files(model)
    with console_progress() as progress:
        bench = run_bench(
            model,
            images=images,
            image_wh=_parse_size(image_size),
            device=device,
            threads=threads,
            seconds=seconds,
            progress=progress,
        )
    for place, fault in bench.faults.items():
        warn(f"{place} was not measured: {fault}")
    if bench.images.unreadable:
        warn(f"{bench.images.unreadable} images could not be read and were skipped")
    advice = advise(bench)
    if as_json:
        show_json(_as_dict(bench, advice), indent=2)
    else:
        show(_as_text(bench, advice))


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None or not (0 < int(match[1]) * int(match[2]) <= 100_000_000):
        raise ConfigError(f"--image-size: expected WIDTHxHEIGHT up to 100 megapixels, as in 4000x3000, found '{text}'")
    return int(match[1]), int(match[2])


def _as_dict(bench: Bench, advice: Advice) -> dict[str, Any]:
    images = bench.images
    plain = {field.name: getattr(bench, field.name) for field in dataclasses.fields(bench)}
    return {
        **plain,
        "images": {
            "source": images.source,
            "count": len(images.contents),
            "mean_bytes": _mean_bytes(bench),
            "unreadable": images.unreadable,
        },
        "rows": [dataclasses.asdict(row.setting) | dataclasses.asdict(row.timing) for row in bench.rows],
        "skipped": [dataclasses.asdict(setting) for setting in bench.skipped],
        "advice": dataclasses.asdict(advice),
    }


def _as_text(bench: Bench, advice: Advice) -> str:
    height, width = bench.input_hw
    images = bench.images
    table = [_COLUMNS, *(_cells(row) for row in bench.rows)]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(_COLUMNS))]
    return "\n".join(
        [
            f"{bench.model}: input {width}x{height}, {bench.onnxruntime}, {bench.cores} cores, {bench.rounds} rounds",
            f"images: {images.source}, {len(images.contents)} of {_mean_bytes(bench) / 1e6:.2f} MB on average",
            "",
            *(_line(cells, widths) for cells in table),
            "",
            *([f"not measured for lack of time: {_skipped(bench)} (increase --seconds)"] if bench.skipped else []),
            *advice.lines,
        ]
    )


def _mean_bytes(bench: Bench) -> int:
    contents = bench.images.contents
    return sum(map(len, contents)) // len(contents)


def _cells(row: Row) -> tuple[str, ...]:
    setting, timing = row.setting, row.timing
    return (
        setting.part,
        setting.place,
        setting.hint or "",
        str(setting.threads),
        str(setting.batch_size or ""),
        f"{timing.images_per_s:.1f}",
        f"{timing.slowest:.1f} to {timing.fastest:.1f}",
        *(f"{ms:.{0 if ms >= 100 else 1 if ms >= 10 else 2}f}" for ms in (timing.p50_ms, timing.p90_ms, timing.p99_ms)),
        str(timing.runs),
    )


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = [
        cell.ljust(width) if column < _WORDS else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _skipped(bench: Bench) -> str:
    by_way: dict[str, list[str]] = {}
    for setting in bench.skipped:
        way = " ".join(filter(None, (setting.place, setting.hint)))
        by_way.setdefault(way, []).append(str(setting.batch_size))
    return "; ".join(f"batches of {', '.join(sizes)} on {way}" for way, sizes in by_way.items())
