"""`tl` and `python -m tl`: says what is missing where the command line's own packages are."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Entry point of the `tl` command."""
    if any(find_spec(name) is None for name in ("typer", "rich")):
        sys.exit(
            "tl: the command line requires additional packages: pip install 'tl-toolkit[cli]' "
            "(tl.runtime works without)"
        )
    from tl.cli import main as run

    run()


if __name__ == "__main__":
    main()
