"""The `tl` command: register the commands of `tl.commands` and report expected errors in one line with exit code 1.

Handles command names, deprecated names, and `--ensemble a.onnx b.onnx c.onnx` as one flag with any number of values.
Imports nothing heavy, so `tl --help` responds immediately.
"""

from __future__ import annotations

import errno
import functools
import io
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

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
    label,
    merge,
    neighbors,
    predict,
    probe,
    refit,
    report,
    review,
    serve,
    sweep,
    train,
    verify,
)
from tl.commands.console import EXIT_FAULT, EXIT_INTERRUPTED, warn
from tl.errors import RunInterrupted, TlError

FLAG = "--ensemble"


def spread_ensemble(args: list[str]) -> list[str]:
    """Repeat the flag before each following value that ends in .onnx, up to the first that does not.

    `images --ensemble a.onnx b.onnx -o out.csv` -> `images --ensemble a.onnx --ensemble b.onnx -o out.csv`.
    """
    spread: list[str] = []
    taking = False
    for i, word in enumerate(args):
        if word == "--":
            return spread + args[i:]
        if word.startswith(f"{FLAG}="):
            taking = True
            spread += [FLAG, word.removeprefix(f"{FLAG}=")]
            continue
        if word == FLAG:
            taking = True
            if not (i + 1 < len(args) and _is_model(args[i + 1])):
                spread.append(word)  # no model follows: let the parser report what is missing
            continue
        taking = taking and _is_model(word)
        spread += [FLAG, word] if taking else [word]
    return spread


class EnsembleCommand(TyperCommand):
    """A command whose `--ensemble` accepts all model files that follow it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Expand `--ensemble`, then parse as usual."""
        return super().parse_args(ctx, spread_ensemble(args))


def _is_model(word: str) -> bool:
    return word.lower().endswith(".onnx") and not word.startswith("-")


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
    """Train transfer-learning models on your images, export each to one ONNX file, and predict anywhere.

    **First steps:** `tl demo` shows the whole workflow; `tl doctor` checks this machine.
    """


# Panel -> its commands: module, command class, short help.
_PANELS: dict[str, list[tuple[ModuleType, type[TyperCommand], str]]] = {
    "Label": [
        (label, TyperCommand, "Label a folder of photos on a local page."),
        (review, EnsembleCommand, "Find doubtful labels and duplicates, and correct them on a local page."),
    ],
    "Train": [
        (train, TyperCommand, "Train a classifier or a landmark model."),
        (probe, TyperCommand, "Compare heads on a frozen backbone by cross-validation."),
        (neighbors, TyperCommand, "Find the training images most similar to an image."),
    ],
    "Model files": [
        (export, TyperCommand, "Export a run to a verified model file."),
        (adopt, TyperCommand, "Convert another tool's ONNX classifier to a model file."),
        (merge, TyperCommand, "Merge several models into one file that votes."),
        (refit, TyperCommand, "Fit a new head for a model file, without torch."),
        (inspect, TyperCommand, "Show a model file's metadata and layers."),
        (verify, TyperCommand, "Run a model file's self-test on this machine."),
    ],
    "Predict": [
        (predict, EnsembleCommand, "Predict images with model files."),
        (evaluate, EnsembleCommand, "Evaluate model files on labeled images."),
        (serve, EnsembleCommand, "Serve model files over HTTP, with a web page."),
        (convert, TyperCommand, "Convert landmarks between CSV, TPS, COCO and DeepLabCut."),
    ],
    "Studies": [
        (sweep, TyperCommand, "Train and compare the runs of a study."),
        (compare, TyperCommand, "Compare finished runs side by side."),
        (report, TyperCommand, "Write the HTML report of a run."),
    ],
    "Machine": [
        (bench, TyperCommand, "Benchmark a model file on this machine."),
        (doctor, TyperCommand, "Check this machine's environment."),
        (demo, TyperCommand, "Run the whole workflow on sample photographs."),
    ],
}


def _ends_in_one_line(command: Callable[..., None]) -> Callable[..., None]:
    """The command, which ends with one line on Ctrl-C or SIGTERM if it has no better answer of its own."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            warn("tl: interrupted; every file written so far is complete: run the same command again")
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return run


for _panel, _commands in _PANELS.items():
    for _module, _class, _help in _commands:
        _name = _module.__name__.rpartition(".")[2]
        _command = _ends_in_one_line(_module.command)
        app.command(_name, cls=_class, short_help=_help, rich_help_panel=_panel)(_command)


# Names from before 0.1, still accepted.
_OLD_COMMANDS = {"neighbours": "neighbors"}
_OLD_OPTIONS = {
    "--normalise": "--normalize",
    "--head-start": "--head-init",
    "--calibration-pictures": "--calibration-images",
    "--output": "--out",
}


def present_names(words: Sequence[str]) -> list[str]:
    """Replace deprecated command and option names with the current ones."""
    end = words.index("--") if "--" in words else len(words)  # what follows it is no option
    renamed = [_OLD_COMMANDS.get(word, word) for word in words[:1]]
    for word in words[1:end]:
        name, equals, value = word.partition("=")
        renamed.append(_OLD_OPTIONS.get(name, name) + equals + value)
    return [*renamed, *words[max(1, end) :]]


def main() -> None:
    """Entry point of the `tl` command."""
    _spin_briefly()
    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # a damaged file is an error row, not a log entry
    sys.argv[1:] = present_names(sys.argv[1:])
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Data is UTF-8 on every system. File names may not be, so their bytes are passed through.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        app()
    except RunInterrupted as stop:
        warn(f"tl: {stop}")
        if stop.run_folder is not None:
            warn(f"hint: tl train --resume {shlex.quote(stop.run_folder)}")
        sys.exit(EXIT_INTERRUPTED)
    except TlError as error:
        warn(f"tl: {error}")
        known = _flags_of(sys.argv[1:2])
        if flags := [flag for flag in map(_as_flag, error.options) if known is None or flag.split()[0] in known]:
            warn(f"hint: {' or '.join(flags)}")
        sys.exit(EXIT_FAULT)
    except BrokenPipeError:  # the reader of stdout, such as `head`, has closed it
        _forget_stdout()
        sys.exit(EXIT_FAULT)
    except Exception as error:
        reason = _disk_fault(error)
        if reason is None:
            raise
        _forget_stdout()
        warn(
            f"tl: a file cannot be written ({reason}): free space on the disk, or set TMPDIR to a folder that has some"
        )
        sys.exit(EXIT_FAULT)


def _spin_briefly() -> None:
    """Let a thread of torch that waits for others sleep soon, unless the user has decided.

    libgomp lets it spin for milliseconds. Where other programs use the cores too, that takes the time of the threads
    it waits for: training was less than half as fast (benchmarks/RESULTS.md, "On a busy machine"). It reads this
    variable when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _disk_fault(error: BaseException | None) -> str | None:
    """Return why a file of a library, or stdout, could not be written; None for another cause.

    Errors of tl's own files have their own class.
    """
    while error is not None:
        if isinstance(error, OSError):
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                return error.strerror
            if error.errno == errno.ENOENT and "temporary directory" in str(error):
                return "no folder for temporary files"  # Source: tempfile writes a file to try a folder
        error = error.__cause__ or error.__context__
    return None


def _flags_of(words: Sequence[str]) -> set[str] | None:
    """Return the flags of the command that `words` begins with, None if it is unknown."""
    group = typer.main.get_command(app) if words else None
    command = group.commands.get(words[0]) if isinstance(group, TyperGroup) else None
    return None if command is None else {flag for option in command.params for flag in option.opts}


def _as_flag(option: str) -> str:
    """Return an option of an error as typed: `lr=0.001` -> `--lr 0.001`, `skip_bad` -> `--skip-bad`."""
    name, equals, value = option.partition("=")
    flag = "--" + name.replace("_", "-")
    return f"{flag} {shlex.quote(value)}" if equals else flag


def _forget_stdout() -> None:
    """Redirect stdout to the null device: Python would raise again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
