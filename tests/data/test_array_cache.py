from __future__ import annotations

import json
import select
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen, run
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tl.data import array_cache
from tl.data.array_cache import ArrayCache, cache_folder
from tl.runtime.output.files import atomic_path

ROOT = Path(__file__).parents[2]
DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "int32", "int64", "float16", "float32", "float64")


def make_array(dtype: str, shape: tuple[int, ...] = (2, 3)) -> NDArray[Any]:
    """Numbers 0, 1, 2, ... of a dtype."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def make_shard(folder: Path, arrays: dict[str, NDArray[Any]]) -> Path:
    """Write another cache file with exactly these arrays."""
    before = set(folder.glob("*"))
    cache = ArrayCache(folder)
    for key, array in arrays.items():
        cache.put(key, array)
    cache.flush()
    (path,) = set(folder.glob("*")) - before
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_array_cache__gives_back_what_was_put(tmp_path: Path, dtype: str) -> None:
    make_shard(tmp_path, {"a": make_array(dtype)})
    found = ArrayCache(tmp_path).get("a")
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, make_array(dtype))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (2, 1, 3, 1)])
def test_array_cache__keeps_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    make_shard(tmp_path, {"a": make_array("int64", shape)})
    assert ArrayCache(tmp_path).get("a").shape == shape
    np.testing.assert_array_equal(ArrayCache(tmp_path).get("a"), make_array("int64", shape))


def test_array_cache__keeps_views_that_are_not_in_row_order(tmp_path: Path) -> None:
    whole = make_array("float32", (4, 6))
    views = {"columns": whole.T, "every_other": whole[:, ::2], "backwards": whole[::-1]}
    make_shard(tmp_path, views)
    for key, view in views.items():
        np.testing.assert_array_equal(ArrayCache(tmp_path).get(key), view)


def test_array_cache__keeps_not_a_number_bit_for_bit(tmp_path: Path) -> None:
    odd = np.array([np.nan, -np.inf, -0.0, 5e-324])
    make_shard(tmp_path, {"a": odd})
    assert ArrayCache(tmp_path).get("a").tobytes() == odd.tobytes()


def test_array_cache__folders_and_keys_need_not_be_ascii(tmp_path: Path) -> None:
    make_shard(tmp_path / "Käfer 甲虫", {"Flügel/翅-1": make_array("uint8")})
    cache = ArrayCache(tmp_path / "Käfer 甲虫")
    assert "Flügel/翅-1" in cache
    np.testing.assert_array_equal(cache.get("Flügel/翅-1"), make_array("uint8"))


def test_array_cache__a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path / "not" / "there")
    assert "a" not in cache
    assert cache.with_prefix("") == {}
    cache.flush()
    assert not (tmp_path / "not").exists()  # nothing to write, so no folder is created
    with pytest.raises(KeyError):
        cache.get("a")


def test_put__is_readable_at_once_and_on_disk_after_flush(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    cache.put("a", make_array("uint8"))
    np.testing.assert_array_equal(cache.get("a"), make_array("uint8"))
    assert "a" not in ArrayCache(tmp_path)
    cache.flush()
    assert "a" in ArrayCache(tmp_path)
    np.testing.assert_array_equal(cache.get("a"), make_array("uint8"))


def test_put__the_first_array_of_a_key_stays(tmp_path: Path) -> None:
    make_shard(tmp_path, {"a": np.zeros(3)})
    cache = ArrayCache(tmp_path)
    cache.put("a", np.ones(3))
    cache.put("b", np.ones(3))
    cache.put("b", np.zeros(3))
    cache.flush()
    for reader in (cache, ArrayCache(tmp_path)):
        assert reader.get("a").tolist() == [0, 0, 0]
        assert reader.get("b").tolist() == [1, 1, 1]


def test_put__many_arrays_become_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_cache, "_SHARD_BYTES", 100)
    cache = ArrayCache(tmp_path)
    for i in range(10):
        cache.put(str(i), np.full(30, i, np.uint8))  # 4 x 30 bytes are the first to reach 100
    assert len(list(tmp_path.iterdir())) == 2
    cache.flush()
    assert len(list(tmp_path.iterdir())) == 3
    assert [int(ArrayCache(tmp_path).get(str(i))[0]) for i in range(10)] == list(range(10))


def test_flush__writes_nothing_twice(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    cache.put("a", make_array("uint8"))
    cache.flush()
    cache.flush()
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_stack__is_in_the_order_of_the_keys_from_disk_and_memory(tmp_path: Path) -> None:
    make_shard(tmp_path, {"a": np.array([1, 2]), "b": np.array([3, 4])})
    cache = ArrayCache(tmp_path)
    cache.put("c", np.array([5, 6]))
    assert cache.stack(["c", "b", "a", "b"]).tolist() == [[5, 6], [3, 4], [1, 2], [3, 4]]
    with pytest.raises(KeyError, match="d"):
        cache.stack(["a", "d"])


def test_with_prefix__strips_it_and_leaves_other_keys(tmp_path: Path) -> None:
    make_shard(tmp_path, {"net/a": np.array(1), "net/net/b": np.array(2), "other": np.array(3)})
    cache = ArrayCache(tmp_path)
    cache.put("net/c", np.array(4))
    found = cache.with_prefix("net/")
    assert {key: int(array) for key, array in found.items()} == {"a": 1, "net/b": 2, "c": 4}


def run_python(code: str, *arguments: str) -> str:
    """Run code in a separate process and return its output."""
    ran = run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def damage(path: Path, kind: str) -> None:
    """Damage a shard as a crash, a full disk or another program might."""
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    changed = {
        "empty": b"",
        "cut in the length": whole[:4],
        "cut in the header": whole[: 8 + header // 2],
        "cut in the numbers": whole[:-1],
        "longer": whole + b"\0",
        "zeros": bytes(len(whole)),
        "not text": whole[:9] + b"\xff" + whole[10:],
        "another kind": b"\x89PNG\r\n\x1a\n" * 20,
    }
    if kind in changed:
        path.write_bytes(changed[kind])
        return
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "broken link":
        path.symlink_to(path.with_name("gone"))


DAMAGES = (
    *("empty", "cut in the length", "cut in the header", "cut in the numbers", "longer", "zeros", "not text"),
    *("another kind", "folder", "broken link"),
)


@pytest.mark.parametrize("kind", DAMAGES)
def test_array_cache__a_damaged_shard_is_passed_over_and_made_again(tmp_path: Path, kind: str) -> None:
    make_shard(tmp_path, {"whole": np.array([1])})
    damage(make_shard(tmp_path, {"lost": np.array([2])}), kind)
    cache = ArrayCache(tmp_path)
    assert "whole" in cache
    assert "lost" not in cache
    cache.put("lost", np.array([3]))
    cache.flush()
    assert cache.fault == ""
    assert [int(ArrayCache(tmp_path).get(key)[0]) for key in ("whole", "lost")] == [1, 3]


def test_array_cache__half_written_files_of_a_killed_run_are_passed_over(tmp_path: Path) -> None:
    whole = make_shard(tmp_path, {"a": np.array([1])})
    (tmp_path / f".{whole.name}.123.partial").write_bytes(whole.read_bytes()[:20])
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    cache = ArrayCache(tmp_path)
    assert list(cache.with_prefix("")) == ["a"]


def test_array_cache__the_folder_may_be_deleted_while_it_is_in_use(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shard = make_shard(folder, {"a": make_array("int64")})
    cache = ArrayCache(folder)
    shard.unlink()
    folder.rmdir()
    np.testing.assert_array_equal(cache.get("a"), make_array("int64"))
    cache.put("b", np.array([1]))
    cache.flush()
    assert cache.fault == ""
    assert "b" in ArrayCache(folder)


@pytest.mark.parametrize("keeps", [False, True])
def test_array_cache__file_in_place_of_the_folder_sets_fault_without_raising(tmp_path: Path, keeps: bool) -> None:
    folder = tmp_path / "c"
    folder.write_text("in the way", encoding="utf-8")
    cache = ArrayCache(folder, keeps_unwritten=keeps)
    cache.put("a", np.array([1]))
    cache.flush()
    cache.put("b", np.array([2]))
    cache.flush()
    assert str(folder) in cache.fault
    assert "cannot be written" in cache.fault
    assert len(cache.fault.splitlines()) == 1
    assert ("a" in cache, "b" in cache) == (keeps, keeps)
    if keeps:
        assert cache.stack(["b", "a"]).tolist() == [[2], [1]]
    assert folder.read_text(encoding="utf-8") == "in the way"


# A disk on which files are limited to 1000 bytes: Python gets EFBIG, where a full disk would give ENOSPC.
FULL_DISK = """
import json, resource, sys
from pathlib import Path
import numpy as np
from tl.data.array_cache import ArrayCache

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
cache = ArrayCache(Path(sys.argv[1]), keeps_unwritten=sys.argv[2] == "keeps")
for key, size in (("small", 10), ("large", 5000), ("late", 10)):
    cache.put(key, np.ones(size, np.uint8))
    cache.flush()
sums = {key: int(cache.get(key).sum()) for key in ("small", "large", "late") if key in cache}
print(json.dumps({"fault": cache.fault, "sums": sums}))
"""


@pytest.mark.parametrize("keeps", [True, False])
def test_flush__a_full_disk_is_a_fault_and_leaves_no_part_of_a_shard(tmp_path: Path, keeps: bool) -> None:
    said = json.loads(run_python(FULL_DISK, str(tmp_path), "keeps" if keeps else "forgets"))
    assert said["fault"].startswith(str(tmp_path))
    assert said["fault"].endswith("cannot be written (File too large)")
    assert said["sums"] == ({"small": 10, "large": 5000, "late": 10} if keeps else {"small": 10})
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    assert list(ArrayCache(tmp_path).with_prefix("")) == ["small"]


# Writes its own keys, and keys that the other process also writes, in many small shards; pauses halfway for inspection.
WRITER = """
import sys
from pathlib import Path
import numpy as np
from tl.runtime.output.files import atomic_path
from tl.data import array_cache

array_cache._SHARD_BYTES = 40_000
cache = array_cache.ArrayCache(Path(sys.argv[1]))
for i in range(200):
    if i in (0, 100):
        print(i, flush=True)
        sys.stdin.readline()
    for key in (f"{sys.argv[2]}-{i}", f"both-{i}"):
        cache.put(key, np.full(2000, i, np.int16))
cache.flush()
print(cache.fault)
"""


def test_array_cache__two_processes_lose_nothing_and_never_see_half_a_shard(tmp_path: Path) -> None:
    arguments = ([sys.executable, "-c", WRITER, str(tmp_path), name] for name in ("left", "right"))
    writers = [Popen(a, cwd=ROOT, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) for a in arguments]
    seen = set()

    def look() -> None:
        arrays = ArrayCache(tmp_path).with_prefix("")
        seen.add(len(arrays))
        for key, array in arrays.items():
            assert array.tolist() == [int(key.split("-")[1])] * 2000

    for half in ("0\n", "100\n"):
        waiting = [writer.stdout for writer in writers]
        while len(select.select(waiting, [], [], 0)[0]) < 2:
            look()
        assert [writer.stdout.readline() for writer in writers if writer.stdout is not None] == [half] * 2
        look()  # while both are paused
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
    while any(writer.poll() is None for writer in writers):
        look()
    assert [writer.communicate() for writer in writers] == [("\n", "")] * 2
    look()
    assert len(seen) > 1  # it was inspected while it grew
    wanted = {f"{name}-{i}" for name in ("left", "right", "both") for i in range(200)}
    assert set(ArrayCache(tmp_path).with_prefix("")) == wanted
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}


def test_get__threads_may_read_together(tmp_path: Path) -> None:
    make_shard(tmp_path, {str(i): np.full(1000, i) for i in range(50)})
    cache = ArrayCache(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(cache.get, [str(i % 50) for i in range(400)]))
    assert all((array == i % 50).all() for i, array in enumerate(found))


def test_cache_folder__the_variable_then_xdg_then_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("TL_CACHE_DIR", "/own/Käfer")
    assert cache_folder() == Path("/own/Käfer")
    monkeypatch.setenv("TL_CACHE_DIR", "")
    assert cache_folder() == Path("/xdg/tl")
    monkeypatch.delenv("TL_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # per the specification, empty counts as unset
    assert cache_folder() == Path("/somewhere/.cache/tl")


def test_flush__deleted_shard_stays_available_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def swept(path: Path) -> Iterator[Path]:
        with atomic_path(path) as temporary:
            yield temporary
        path.unlink()

    monkeypatch.setattr(array_cache, "atomic_path", swept)
    cache = ArrayCache(tmp_path, keeps_unwritten=True)
    cache.put("a", np.array([1]))
    cache.flush()
    assert cache.get("a").tolist() == [1]
