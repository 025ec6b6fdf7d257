from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.commands.conftest import RunTl
from tl.commands.demo import write_digits


def test_write_digits__splits_and_images(tmp_path: Path) -> None:
    write_digits(tmp_path)
    counts = {
        split: {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / "digits-5-9" / split).iterdir()}
        for split in ("train", "val", "test")
    }
    assert set(counts["train"].values()) == {8}
    assert set(counts["val"].values()) == {30}
    # scikit-learn's digits contain 1797 images, 901 of them of the digits 0 to 4
    assert sum(map(sum, (split.values() for split in counts.values()))) == 1797 - 901
    assert sorted(folder.name for folder in (tmp_path / "digits-0-4").iterdir()) == list("01234")
    with Image.open(tmp_path / "digits-5-9" / "train" / "7" / "000.png") as image:
        assert (image.size, image.mode) == ((32, 32), "L")


def test_demo__never_writes_into_an_existing_folder(run_tl: RunTl, tmp_path: Path) -> None:
    done = run_tl("demo", tmp_path)
    assert done.code == 1
    assert "already exists" in done.err
    assert list(tmp_path.iterdir()) == []
