from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.commands.conftest import RunTl
from tests.models import solid
from tests.runtime.landmarks.test_stated_sizes import make_coco

TPS = "LM=2\n1 2\n3 4\nIMAGE=a.png\nSCALE=0.5\nCURVES=1\nPOINTS=1\n0 0\n"


def test_convert__tps_to_csv_and_back(run_tl: RunTl, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(solid((9, 9, 9), 20, 30)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "w.tps").write_text(TPS)
    done = run_tl(
        *("convert", tmp_path / "w.tps", tmp_path / "w.csv"),
        *("--images", tmp_path / "photos", "--names", "tip, hinge"),
    )
    assert (done.code, done.out) == (0, "")
    assert "curves of 1 records were discarded" in done.err
    assert "1 images with 2 points" in done.err
    assert (tmp_path / "w.csv").read_text() == "path,mm_per_px,x_tip,y_tip,x_hinge,y_hinge\na.png,0.5,1,18,3,16\n"
    back = run_tl("convert", tmp_path / "w.csv", tmp_path / "b.tps", "--images", tmp_path / "photos")
    assert "names: cannot be stored in format tps" in back.err
    assert (tmp_path / "b.tps").read_text().splitlines()[1:3] == ["1.00000 2.00000", "3.00000 4.00000"]
    again = run_tl("convert", tmp_path / "w.csv", tmp_path / "CollectedData_me.csv", "--to", "deeplabcut")
    assert "scale: cannot be stored in format deeplabcut" in again.err
    assert (tmp_path / "CollectedData_me.csv").read_text().splitlines()[-1] == "a.png,1.0,18.0,3.0,16.0"


def test_convert__faults(run_tl: RunTl, tmp_path: Path) -> None:
    (tmp_path / "w.tps").write_text(TPS)
    (tmp_path / "w.csv").write_text("path,x0,y0\na.png,1,2\n")
    for words, message in (
        ((tmp_path / "w.tps", tmp_path / "o.csv"), "image a.png was not found in"),
        ((tmp_path / "w.csv", tmp_path / "o.json"), "image a.png was not found in"),
        ((tmp_path / "w.csv", tmp_path / "o.xml"), "expected a name that ends in .csv, .tps, .json"),
        ((tmp_path / "w.csv", tmp_path / "o.csv", "--names", "a,b"), "expected 1 different names"),
        ((tmp_path / "gone.csv", tmp_path / "o.csv"), "gone.csv: cannot be read"),
    ):
        done = run_tl("convert", *words)
        assert done.code == 1
        assert message in done.err
        assert not list(tmp_path.glob("o.*"))


def test_convert__never_over_its_source_or_under_a_wrong_name(run_tl: RunTl, tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text("path,x0,y0\na.png,1,2\n", encoding="utf-8")
    assert "output and input are the same file" in run_tl("convert", source, source, "--overwrite").err
    assert (
        "expected the extension .csv for format "
        "long" in run_tl("convert", source, tmp_path / "b.tps", "--to", "long").err
    )
    assert source.read_text(encoding="utf-8") == "path,x0,y0\na.png,1,2\n"


def test_convert__never_another_size_over_unchanged_points(run_tl: RunTl, tmp_path: Path) -> None:
    path = make_coco(tmp_path, (20, 10))
    for name in ("out.json", "out.csv"):
        done = run_tl("convert", path, tmp_path / name)
        assert done.code == 1
        assert "states 20x10 pixels for 0.jpg, but the photo has 40x20" in done.err
        assert not (tmp_path / name).exists()
    turned = make_coco(tmp_path, (20, 40), orientation=6)
    assert "hint: --from-stored" in run_tl("convert", turned, tmp_path / "up.json").err
    assert run_tl("convert", turned, tmp_path / "up.json", "--from-stored").code == 0
