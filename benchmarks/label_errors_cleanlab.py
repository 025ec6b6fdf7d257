"""Run cleanlab on the files of benchmarks/label_errors.py, with its defaults: FILE.npz -> FILE.cleanlab.

cleanlab's license is AGPL: it runs in an environment of its own and is no dependency. It needs no `tl`.

    python -m venv VENV && VENV/bin/pip install cleanlab && VENV/bin/python benchmarks/label_errors_cleanlab.py OUT
"""

import sys
from pathlib import Path

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    for path in sorted(Path(sys.argv[1]).glob("*~*.npz")):
        data = np.load(path)
        ids, probabilities = data["ids"], data["probabilities"]
        named = find_label_issues(ids, probabilities, n_jobs=1)
        with path.with_suffix(".cleanlab").open("wb") as stream:
            np.savez(stream, named=named, quality=get_label_quality_scores(ids, probabilities))


if __name__ == "__main__":
    main()
