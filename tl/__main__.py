"""`tl` and `python -m tl`: says what is missing where the command line's own packages are."""

import signal
import sys
from importlib.util import find_spec
from types import FrameType

_INTERRUPTED = 130


def main() -> None:
    """Entry point of the `tl` command."""
    if any(find_spec(name) is None for name in ("typer", "rich")):
        sys.exit(
            "tl: the command line requires additional packages: pip install 'tl-toolkit[cli]' "
            "(tl.runtime works without)"
        )
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from tl.cli import main as run

        run()
    except KeyboardInterrupt:  # while packages were imported
        sys.stderr.write("tl: interrupted before it began\n")
        sys.exit(_INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM, by which schedulers end jobs, as Ctrl-C: what is finished is kept."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
