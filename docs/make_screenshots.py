"""Screenshots of report pages, as the README shows one: REPORT.html -> docs/images/report.png, by a headless Chromium.

    python docs/make_screenshots.py tl-demo/runs/scratch/report.html

`make demo` makes that page, of photographs that scikit-image brings.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OUT = Path(__file__).parent / "images" / "report.png"
WIDTH, HEIGHT = 1280, 1260  # down to the confusion matrix


def main() -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("needs Chromium: apt-get install chromium")
    page = Path(sys.argv[1]).resolve()
    OUT.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        command = [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
            *("--no-first-run", f"--user-data-dir={profile}", "--hide-scrollbars"),
            *(f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={OUT}", page.as_uri()),
        ]
        subprocess.run(command, check=True, timeout=120, capture_output=True)
    print(f"{OUT}: {OUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
