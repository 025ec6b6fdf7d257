"""Two processes on the CPU: the arithmetic in a process group of its own, and `tl train` started by torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.trainer.make import make_class_folders, read_rows, train_here, weights_of
from tl.errors import ConfigError
from tl.trainer.fit.distributed import Ranks, join_ranks, share_batch_norm
from tl.trainer.models.backbones import build_trunk
from tl.trainer.run_folder.run import Run

# SGD, because its steps are proportional to the gradient; Adam's division would amplify differences.
OPTIONS: dict[str, Any] = {"optimizer": "sgd", "lr": 0.02, "weight_decay": 1e-3}
SECONDS = 300  # about ten times the duration of a run on two slow cores; longer means that it hangs


def whole_batch(kind: str) -> Tensor:
    """Five images with four channels, 6 x 5 px."""
    noise = torch.randn(5, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    flat = torch.tensor([0.3, 7.7, 12.7, -123.4]).view(1, 4, 1, 1).expand(5, 4, 6, 5)
    return {"plain": noise, "far from zero": 100 + noise, "constant": flat}[kind]


def norm(**changes: Any) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(4, **changes)
    if module.affine:
        with torch.no_grad():
            module.weight.copy_(torch.tensor([0.5, 1.0, 2.0, -1.0]))
            module.bias.copy_(torch.tensor([0.1, 0.0, -0.3, 1.0]))
    return module


NORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cumulative": {"momentum": None},
    "bare": {"affine": False},
    "forgets": {"track_running_stats": False},
}
CASES = [*((kind, "plain") for kind in ("plain", "far from zero", "constant")), *(("plain", name) for name in NORMS)]


def run_norm(module: nn.Module, pixels: Tensor, ranks: Ranks) -> dict[str, Tensor]:
    """Two forward and backward passes with a loss that weights every value differently."""
    pixels = pixels.clone().requires_grad_()
    weights = torch.linspace(-1, 2, 5 * 4 * 6 * 5).view(5, 4, 6, 5)
    for _ in range(2):
        found = module(ranks.shard(pixels))
        (found * ranks.shard(weights)).sum().backward()
    grads = {f"grad {name}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    for grad in grads.values():
        ranks.all_reduce(grad)
    assert pixels.grad is not None
    return {"output": found.detach(), "input": ranks.shard(pixels.grad), **grads, **dict(module.named_buffers())}


def work(rank: int, folder: str) -> None:
    """The work of each of two processes; the tests inspect the results in `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    ranks = Ranks(rank, 2, rank)
    found: dict[str, Any] = {}
    for kind, name in CASES:
        shared = nn.Sequential(norm(**NORMS[name]))
        share_batch_norm(shared, ranks)
        found[f"{kind}, {name}"] = run_norm(shared[0], whole_batch(kind), ranks)
    numbers = torch.tensor([1.0, 10.0]) * (rank + 1)
    ranks.all_reduce(numbers)
    found["sum"] = numbers
    for count in (1, 2, 5):
        rows = torch.arange(3 * count).view(count, 3)
        found[f"interleave {count}"] = ranks.gather(ranks.shard(rows))
    found["told"] = ranks.broadcast(f"from {rank}")
    module = nn.Linear(2, 1)
    found["frozen"] = ranks.wrap(module.requires_grad_(False)) is module
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_share_batch_norm__as_one_norm_of_the_whole_batch(both: list[dict[str, Any]], kind: str, name: str) -> None:
    wanted = run_norm(norm(**NORMS[name]), whole_batch(kind), Ranks())
    # Values from 1 to 100, from sums of 150 float32 terms. Adding 100 makes the rounding of each value a hundred times
    # as large. A channel without spread is multiplied by 316, the root of 1 / 1e-5, and so is its rounding.
    tolerance = {"plain": 1e-5, "far from zero": 1e-4, "constant": 1e-2}[kind]
    for rank, found in enumerate(both):
        ours = found[f"{kind}, {name}"]
        assert ours.keys() == wanted.keys()
        assert all(torch.isfinite(tensor).all() for tensor in ours.values())
        for key, tensor in wanted.items():
            if kind == "constant" and (key == "input" or "grad" in key):
                continue  # sums of such rounding errors
            own = tensor[rank::2] if key in ("output", "input") else tensor
            # Gradients of weights are sums of 300 products of such values, whose rounding errors add up like a random
            # walk.
            allowed = 20 * tolerance if "grad" in key else tolerance
            torch.testing.assert_close(ours[key], own, rtol=allowed, atol=allowed)


def test_ranks__sums_and_words_reach_everyone(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert found["sum"].tolist() == [3.0, 30.0]
        assert found["told"] == "from 0"
        assert found["frozen"]  # torch refuses to wrap a module without trainable parameters


@pytest.mark.parametrize("count", [1, 2, 5])
def test_ranks__interleave_undoes_share(both: list[dict[str, Any]], count: int) -> None:
    wanted = torch.arange(3 * count).view(count, 3)
    assert all(torch.equal(found[f"interleave {count}"], wanted) for found in both)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_ranks__shares_hold_everything_once(world: int) -> None:
    shares = [Ranks(rank, world).shard(range(5)) for rank in range(world)]
    assert sorted(item for share in shares for item in share) == [0, 1, 2, 3, 4]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_ranks__alone_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks, number, module = join_ranks(), torch.ones(2), nn.Linear(2, 2)
    assert ranks == Ranks(0, 1, 0)
    assert ranks.is_first
    ranks.all_reduce(number)
    assert number.tolist() == [1, 1]
    assert ranks.gather(number) is number
    assert ranks.broadcast(module) is ranks.wrap(module) is module
    share_batch_norm(nn.Sequential(nn.BatchNorm1d(2)), ranks)


def test_share_batch_norm__rejects_layers_that_include_an_activation() -> None:
    # timm's norm layers include their activation, which would be lost.
    trunk = build_trunk("timm:mobilenetv3_small_050")
    with pytest.raises(ConfigError, match=r"BatchNormAct2d of this backbone cannot be .*: train without torchrun"):
        share_batch_norm(trunk, Ranks(0, 2))
    share_batch_norm(trunk, Ranks())


@pytest.fixture(scope="module")
def photos_of_five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training images and three validation images, so that two processes never have equal shares."""
    return make_class_folders(tmp_path_factory.mktemp("data") / "photos", 5)


def command_line(photos: Path, out: Path, **options: Any) -> list[str]:
    plain = {"method": "scratch", "backbone": "smallcnn", "image_size": 32, "augment": "none", "device": "cpu"}
    flags = {**plain, "threads": 1, "workers": 0, "batch_size": 7, **OPTIONS, **options}
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["train", str(photos), *words, "--out", str(out)]


def start(words: list[str]) -> subprocess.Popen[str]:
    """Run `tl` in two processes, all in a separate process group, as in a terminal."""
    # Without the dashes, torchrun takes --monitor for an abbreviation of one of its own options.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*torchrun, "tl", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )


def children(pid: int) -> Iterator[int]:
    """Source: proc(5)."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            yield int(path.parent.name)


def finish(process: subprocess.Popen[str], seconds: float = SECONDS) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr. Kills a process that does not end, which fails the test."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        for pid in (*children(process.pid), process.pid):  # torchrun's own sessions outlive it
            os.kill(pid, signal.SIGKILL)
        _, err = process.communicate()
        pytest.fail(f"still running after {seconds} s\n{err[-2000:]}")
    return process.returncode, out, err


def wait_for(is_there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + SECONDS
    while not is_there():
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(f"nothing to wait for any more\n{finish(process, 1)[2][-2000:]}")
        time.sleep(0.05)


def assert_as_one(two: Run, one: Run) -> None:
    """Check equal history and weights, except for the order of float32 sums."""
    rows = [read_rows(run.folder / "history.csv") for run in (two, one)]
    assert len(rows[0]) == len(rows[1])
    for ours, theirs in zip(*rows, strict=True):
        for name in ("epoch", "lr", "train_top1_accuracy", "val_top1_accuracy", "val_macro_f1"):
            assert ours[name] == theirs[name], name
        for name in ("train_loss", "val_loss", "val_ece"):  # written with six digits
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-4, abs=1e-5), name
    left, right = weights_of(two), weights_of(one)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        # Weights below 1 and about ten steps, each with gradients that are sums of thousands of float32 terms.
        torch.testing.assert_close(tensor, right[name], rtol=1e-4, atol=2e-5)


def test_train__two_processes_are_one(photos_of_five: Path, tmp_path: Path) -> None:
    # 12 images in batches of 7 and 5: uneven shares and an uneven last batch; everything stateful.
    options = {"epochs": 6, "patience": 2, "lr": 0.2, "ema_decay": 0.5, "clip_norm": 1.0, "accumulate": 2}
    options |= {"label_smoothing": 0.1, "class_weights": "balanced", "monitor": "train_loss", "schedule": "plateau"}
    code, out, err = finish(
        start([*command_line(photos_of_five, tmp_path / "two", **options), "--json", "--no-report"])
    )
    assert code == 0, err
    one = train_here(photos_of_five, tmp_path / "one", **{**OPTIONS, "batch_size": 7, **options})
    two = Run(tmp_path / "two")
    assert_as_one(two, one.run)
    assert json.loads(out)["val"]["n"] == 3  # only one process prints
    assert "Warning" not in err
    names = [sorted(path.name for path in run.folder.iterdir()) for run in (two, one.run)]
    plain = [[name for name in some if "tfevents" not in name] for some in names]
    assert plain[0] == plain[1]
    assert len(names[0]) == len(names[1]) == len(plain[0]) + 1  # one event file


@pytest.mark.slow
def test_train__two_processes_fine_tune_from_one_solved_head(
    photos_of_five: Path, finished_run: Run, tmp_path: Path
) -> None:
    options = {"method": "finetune", "weights": str(finished_run.folder), "epochs": 2, "head_init": "solved"}
    flags = ["--interpolate", "--refit", "--batch-norm", "fixed"]
    code, _, err = finish(start([*command_line(photos_of_five, tmp_path / "two", **options), *flags, "--no-report"]))
    assert code == 0, err[-2000:]
    switches = {"interpolate": True, "refit": True, "batch_norm": "fixed"}
    one = train_here(photos_of_five, tmp_path / "one", **{**OPTIONS, "batch_size": 7, **options, **switches}).run
    two = Run(tmp_path / "two")
    assert_as_one(two, one)
    names = [sorted(path.name for path in run.folder.iterdir() if "tfevents" not in path.name) for run in (two, one)]
    assert names[0] == names[1]
    assert {"history_2.csv", "last_2.pt", "predictions_fitted.csv", "c_search.csv", "c_search_2.csv"} <= set(names[0])


@pytest.mark.slow
def test_train__stops_early_in_both(photos_of_five: Path, tmp_path: Path) -> None:
    # A negligible learning rate: no epoch is better than the first.
    options = {"epochs": 50, "patience": 2, "lr": 1e-30, "monitor": "val_top1_accuracy"}
    code, _, err = finish(start(command_line(photos_of_five, tmp_path / "two", **options)))
    assert code == 0, err
    assert len(read_rows(tmp_path / "two" / "history.csv")) < 50


@pytest.mark.slow
def test_train__search_for_a_learning_rate_is_refused(photos_of_five: Path, tmp_path: Path) -> None:
    # If only one process searched, it would wait forever for the other's share of batch norm.
    code, _, err = finish(start(command_line(photos_of_five, tmp_path / "two", lr="auto", epochs=2)), 60)
    assert code != 0
    said = {line for line in err.splitlines() if line.startswith("tl: ")}
    assert len(said) == 1
    assert "with torchrun, lr must be a number" in said.pop()
    assert not (tmp_path / "two").exists()


@pytest.mark.slow
def test_train__one_image_to_validate(tmp_path: Path) -> None:
    data = make_class_folders(tmp_path / "data" / "train", 4)
    make_class_folders(data.parent / "val", 1, ["red"])
    code, _, err = finish(start(command_line(data.parent, tmp_path / "two", epochs=1)), 60)
    assert code == 0, err[-2000:]
    one = train_here(data.parent, tmp_path / "one", **{**OPTIONS, "batch_size": 7, "epochs": 1})
    assert_as_one(Run(tmp_path / "two"), one.run)


@pytest.mark.slow
def test_train__fault_of_the_first_process_ends_both(photos_of_five: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "mine.txt").touch()
    code, _, err = finish(start(command_line(photos_of_five, tmp_path / "two", epochs=1)), 60)
    assert code != 0
    assert [line for line in err.splitlines() if line.startswith("tl: ")] == [
        f"tl: {tmp_path}/two: already exists; use another folder, or resume the run"
    ]
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["mine.txt"]


def epochs_in(path: Path) -> int:
    return len(torch.load(path, weights_only=True)["history"])


@pytest.mark.slow
def test_train__interrupted_or_killed_goes_on(photos_of_five: Path, tmp_path: Path) -> None:
    options = {"epochs": 4000, "augment": "flip", "patience": 4000, "schedule": "constant"}
    process = start(command_line(photos_of_five, tmp_path / "two", **options))
    last = tmp_path / "two" / "last.pt"
    wait_for(last.exists, process)
    os.killpg(process.pid, signal.SIGINT)  # like Ctrl-C in a terminal
    code, _, _ = finish(process, 60)  # the output depends on which process torchrun stops first
    assert code != 0
    kept, before = epochs_in(last), last.stat().st_mtime
    process = start(["train", "--resume", str(tmp_path / "two")])
    wait_for(lambda: last.stat().st_mtime > before, process)
    os.kill(min(children(process.pid)), signal.SIGKILL)  # one of the two dies; the other would wait forever
    code, _, _ = finish(process, 60)
    assert code != 0
    assert epochs_in(last) > kept
