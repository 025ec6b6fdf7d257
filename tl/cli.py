"""The `tl` command: gathers the commands of `tl.commands` and turns expected faults into one line and exit code 1.

Knows command names. Does no work and imports nothing heavy, so that `tl --help` answers at once.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from tl import __version__
from tl.commands import (
    adopt,
    bench,
    compare,
    convert,
    demo,
    doctor,
    evaluate,
    export,
    inspect,
    merge,
    neighbors,
    predict,
    probe,
    refit,
    report,
    sweep,
    train,
    verify,
)
from tl.commands.console import EXIT_FAULT, EXIT_INTERRUPTED, warn
from tl.commands.ensemble_option import EnsembleCommand
from tl.errors import RunInterrupted, TlError

app = typer.Typer(
    name="tl",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train transfer-learning models from your photos, export them to one ONNX file, predict anywhere.

    **First steps:** `tl demo` shows the whole way; `tl doctor` checks this machine.
    """


app.command("train", short_help="Train a classifier on labeled photos.")(train.command)
app.command("probe", short_help="Compare heads on a frozen backbone by cross-validation.")(probe.command)
app.command("export", short_help="Turn a run into a verified model file.")(export.command)
app.command("adopt", short_help="Turn another tool's ONNX classifier into a model file.")(adopt.command)
app.command("merge", short_help="Make one model file of several that vote.")(merge.command)
app.command("refit", short_help="Give a model file a new head, without torch.")(refit.command)
app.command("predict", cls=EnsembleCommand, short_help="Predict photos with model files.")(predict.command)
app.command("evaluate", cls=EnsembleCommand, short_help="Score model files on labeled photos.")(evaluate.command)
app.command("sweep", short_help="Train a study of many runs and compare them.")(sweep.command)
app.command("compare", short_help="Show finished runs side by side.")(compare.command)
app.command("report", short_help="Write the page of a run.")(report.command)
app.command("neighbors", short_help="Find the training images most like a new one.")(neighbors.command)
app.command("inspect", short_help="Show what a model file says of itself.")(inspect.command)
app.command("verify", short_help="Rerun a model file's self-test here.")(verify.command)
app.command("bench", short_help="Measure a model file on this machine.")(bench.command)
app.command("convert", short_help="Convert landmarks between CSV, TPS, COCO and DeepLabCut.")(convert.command)
app.command("doctor", short_help="Check this machine.")(doctor.command)
app.command("demo", short_help="Walk the whole way on handwritten digits.")(demo.command)


# Names of before 0.1, still understood.
_OLD_COMMANDS = {"neighbours": "neighbors"}
_OLD_OPTIONS = {
    "--normalise": "--normalize",
    "--head-start": "--head-init",
    "--calibration-pictures": "--calibration-images",
}


def present_names(words: Sequence[str]) -> list[str]:
    """A command line with the present names of its command and options."""
    *_, last = [0, *(i for i, word in enumerate(words) if word == "--")]
    end = last if "--" in words else len(words)
    renamed = [_OLD_COMMANDS.get(word, word) for word in words[:1]]
    for word in words[1:end]:
        name, equals, value = word.partition("=")
        renamed.append(_OLD_OPTIONS.get(name, name) + equals + value)
    return [*renamed, *words[max(1, end) :]]


def main() -> None:
    """Entry point of the `tl` command."""
    sys.argv[1:] = present_names(sys.argv[1:])
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Data is UTF-8 on every system; file names need not be: give their bytes back.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        app()
    except RunInterrupted as stop:
        warn(f"tl: {stop}")
        sys.exit(EXIT_INTERRUPTED)
    except TlError as error:
        warn(f"tl: {error}")
        sys.exit(EXIT_FAULT)
    except BrokenPipeError:  # the reader of stdout, such as `head`, has enough
        _forget_stdout()
        sys.exit(EXIT_FAULT)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # files have errors of their own: this is stdout
            raise
        _forget_stdout()
        warn(f"tl: the output cannot be written ({error.strerror})")
        sys.exit(EXIT_FAULT)


def _forget_stdout() -> None:
    """Python would complain again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
