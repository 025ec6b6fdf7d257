"""What the figures of `bench` mean in words: how to load the model, and what bounds the speed.

Knows the figures. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tl.runtime.bench import Bench, Row
from tl.runtime.bench_works import Setting

Bound = Literal["decoding", "network", "both"]
# A plainer setting is preferred where it is less than this slower: rounds differ by as much.
_AS_GOOD = 0.05
_UNSTEADY = 0.2
# Shares of time between which neither is called the bound.
_EVEN = (0.4, 0.6)


@dataclass(frozen=True)
class Advice:
    """`many`: the setting for many pictures, `one`: for one at a time. `decoding_share`: of a picture's time, 0..1.

    `lines`: all of it as sentences.
    """

    many: Setting
    one: Setting
    bound: Bound
    decoding_share: float
    lines: tuple[str, ...]


def advise(bench: Bench) -> Advice:
    """Which batch size, threads, hint and device to take, and whether decoding or the network bounds the speed."""
    network = [row for row in bench.rows if row.setting.part == "network"]
    many, one = _for_many(network), _for_one(network)
    decode = max((row for row in bench.rows if row.setting.part == "decode"), key=lambda row: row.setting.threads)
    share = _decoding_share(decode, many)
    bound: Bound = "decoding" if share > _EVEN[1] else "network" if share < _EVEN[0] else "both"
    lines = [_many_line(many), _one_line(one), _bound_line(bound, decode, many, share)]
    lines += [_together_line(row) for row in bench.rows if row.setting.part == "together"]
    return Advice(many.setting, one.setting, bound, share, (*lines, *_cautions(bench)))


def _for_many(rows: Sequence[Row]) -> Row:
    """The plainest setting as fast as the fastest, or not to be told from it: small batches, then `load`'s own hint."""
    best = max((row.timing for row in rows), key=lambda timing: timing.pictures_per_s)
    enough = (1 - _AS_GOOD) * best.pictures_per_s
    good = [row for row in rows if row.timing.pictures_per_s >= enough or row.timing.fastest >= best.slowest]
    return min(good, key=lambda row: (row.setting.batch_size or 1, row.setting.hint == "latency"))


def _for_one(rows: Sequence[Row]) -> Row:
    """The fewest threads that answer one picture as soon as the soonest. Only one caller works, so nothing waits."""
    alone = [row for row in rows if row.setting.batch_size == 1 and _is_alone(row.setting)]
    best = min(row.timing.p50_ms for row in alone)
    return min(
        (row for row in alone if row.timing.p50_ms <= (1 + _AS_GOOD) * best), key=lambda row: row.setting.threads
    )


def _is_alone(setting: Setting) -> bool:
    return setting.hint != "throughput" or setting.threads == 1


def _decoding_share(decode: Row, network: Row) -> float:
    """On the CPU both share the cores; a GPU works beside the decoding, and the slower of the two bounds."""
    slow, fast = 1 / decode.timing.pictures_per_s, 1 / network.timing.pictures_per_s
    return slow / (slow + fast)


def _many_line(row: Row) -> str:
    setting, rate = row.setting, row.timing.pictures_per_s
    batch = f", predict_iter(batch_size={setting.batch_size})" if (setting.batch_size or 1) > 1 else ", single pictures"
    return f"many pictures: load({_arguments(setting)}){batch}: {rate:.0f} pictures/s by the network alone"


def _one_line(row: Row) -> str:
    timing = row.timing
    return (
        f"one picture at a time: load({_arguments(row.setting)}): {timing.p50_ms:.1f} ms by the network alone "
        f"(p99 {timing.p99_ms:.1f} ms)"
    )


def _arguments(setting: Setting) -> str:
    words = ["model", f'device="{setting.device}"']
    if setting.device == "cpu":
        words += [f"threads={setting.threads}", f'hint="{setting.hint}"']
    return ", ".join(words)


def _bound_line(bound: Bound, decode: Row, network: Row, share: float) -> str:
    rates = (
        f"{decode.timing.pictures_per_s:.0f} pictures/s decoded and resized with {decode.setting.threads} threads, "
        f"{network.timing.pictures_per_s:.0f} by the network"
    )
    cures = {
        "decoding": "smaller pictures or more cores help, a faster network hardly",
        "network": "a smaller network, more cores or a GPU help, smaller pictures hardly",
        "both": "both count",
    }
    on_gpu = network.setting.device != "cpu"
    says = "" if on_gpu else f", {share:.0%} of a picture's time is decoding"
    bounds = {"decoding": "decoding", "network": "the network", "both": "decoding and the network alike"}
    return f"bound by {bounds[bound]}: {rates}{says}; {cures[bound]}"


def _together_line(row: Row) -> str:
    setting, timing = row.setting, row.timing
    return (
        f"both together, measured on {setting.device} as tl predict does it: {timing.pictures_per_s:.0f} pictures/s "
        f"({timing.slowest:.0f} to {timing.fastest:.0f})"
    )


def _cautions(bench: Bench) -> list[str]:
    says = []
    if bench.rounds == 1:
        says.append("there was time for one round only: give more --seconds")
    spreads = [row.timing.fastest / row.timing.slowest - 1 for row in bench.rows]
    unsteady = sum(spread > _UNSTEADY for spread in spreads)
    if unsteady:
        says.append(
            f"{unsteady} of {len(spreads)} figures differ by more than {_UNSTEADY:.0%} between rounds: "
            "something else is running, or there is too little time (--seconds)"
        )
    return says
