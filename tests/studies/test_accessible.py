"""Pages of real runs are accessible, by axe-core in Chromium: contrast, names, keyboard; light and dark, and narrow."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.trainer.conftest import fresh_cache as fresh_cache
from tests.trainer.make import make_config
from tl.progress import Silent
from tl.studies.report.page import Comparison, Mark, Page, Section, write_page
from tl.studies.report.run_page import write_run_report
from tl.trainer.run_folder.run import Run
from tl.trainer.train import train

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = "axe-core@4.10.3"
# Dark is a setting of the browser; all parts are checked, folded ones too.
_RUN = """
<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach((each) => { each.open = true; });
  document.querySelector(".matrix td button")?.click();
  const close = document.querySelector(".filtered button"); if (close) close.click();
  setTimeout(() => axe.run().then((found) => {
    document.body.dataset.found = JSON.stringify(found.violations.map((each) =>
      [each.id, each.nodes.slice(0, 3).map((node) => node.html.slice(0, 200))]));
  }), 300);
});
</script>
"""


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core."""
    npm = shutil.which("npm")
    if npm is None or CHROMIUM is None:
        pytest.skip("no npm or no Chromium here")
    folder = tmp_path_factory.mktemp("axe")
    words = [npm, "install", "--prefix", str(folder), "--no-save", "--no-audit", "--no-fund", AXE]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install {AXE}: {done.stderr[-200:]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


def check_page(path: Path, axe: str, profile: Path, *, is_dark: bool = False, width: int = 1280) -> None:
    """Raise AssertionError with the faults that axe finds."""
    text = path.read_text(encoding="utf-8")
    place = path.with_name("checked.html")
    place.write_text(text.replace("</body>", f"<script>{axe}</script>{_RUN}</body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += [f"--user-data-dir={profile}", f"--window-size={width},2000", "--virtual-time-budget=60000"]
    flags += ["--blink-settings=preferredColorScheme=0"] * is_dark
    done = subprocess.run(
        [str(CHROMIUM), *flags, "--dump-dom", place.as_uri()], capture_output=True, text=True, timeout=180, check=True
    )
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found is not None, "axe did not end"
    assert json.loads(html.unescape(found[1])) == []


@pytest.mark.slow
def test_pages__are_accessible(
    axe: str, finished_run: Run, spot_run: Run, photos: Path, tmp_path: Path, fresh_cache: Path
) -> None:
    config = make_config(photos, tmp_path / "r", method="features", weights=str(finished_run.folder), head="linear")
    with_map = write_run_report(train(config, Silent()).run)
    assert 'class="map"' in with_map.read_text(encoding="utf-8")
    check_page(with_map, axe, tmp_path / "profile")
    check_page(with_map, axe, tmp_path / "profile", is_dark=True, width=390)
    check_page(write_run_report(finished_run, tmp_path / "a" / "classes.html"), axe, tmp_path / "profile")
    check_page(write_run_report(spot_run, tmp_path / "b" / "points.html"), axe, tmp_path / "profile", is_dark=True)


@pytest.mark.slow
def test_comparison__is_accessible(axe: str, tmp_path: Path) -> None:
    rows = [("lr=0.1", [Mark("validation", 0.8, 0.7, 0.9), Mark("test", 0.75)], [0.8, None])]
    page = Page("p", "s", [("runs", "1")], [Section("Settings", [Comparison(("validation", "test"), rows)])])
    write_page(page, tmp_path / "p.html")
    check_page(tmp_path / "p.html", axe, tmp_path / "profile")
