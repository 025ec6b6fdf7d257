"""The `tl` command: gathers the commands of `tl.commands` and turns expected faults into one line and exit code 1.

Knows the words of the command line: names of commands, old names, and `--ensemble a.onnx b.onnx c.onnx` as one flag
with any number of values. Does no work and imports nothing heavy, so that `tl --help` answers at once.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

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
from tl.errors import RunInterrupted, TlError

FLAG = "--ensemble"


def spread_ensemble(args: list[str]) -> list[str]:
    """Repeat the flag before each following value that ends in .onnx, up to the next word that does not.

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
                spread.append(word)  # no model follows: let the parser say what is missing
            continue
        taking = taking and _is_model(word)
        spread += [FLAG, word] if taking else [word]
    return spread


class EnsembleCommand(TyperCommand):
    """A command whose `--ensemble` takes all model files that follow it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Rewrite the words, then parse as usual."""
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
    """Train transfer-learning models from your photos, export them to one ONNX file, predict anywhere.

    **First steps:** `tl demo` shows the whole way; `tl doctor` checks this machine.
    """


# Panel -> its commands: module, class of the command, what it does.
_PANELS: dict[str, list[tuple[ModuleType, type[TyperCommand], str]]] = {
    "Train": [
        (train, TyperCommand, "Train a classifier on labeled photos."),
        (probe, TyperCommand, "Compare heads on a frozen backbone by cross-validation."),
        (neighbors, TyperCommand, "Find the training images most like a new one."),
    ],
    "Model files": [
        (export, TyperCommand, "Turn a run into a verified model file."),
        (adopt, TyperCommand, "Turn another tool's ONNX classifier into a model file."),
        (merge, TyperCommand, "Make one model file of several that vote."),
        (refit, TyperCommand, "Give a model file a new head, without torch."),
        (inspect, TyperCommand, "Show what a model file says of itself."),
        (verify, TyperCommand, "Rerun a model file's self-test here."),
    ],
    "Predict": [
        (predict, EnsembleCommand, "Predict photos with model files."),
        (evaluate, EnsembleCommand, "Score model files on labeled photos."),
        (convert, TyperCommand, "Convert landmarks between CSV, TPS, COCO and DeepLabCut."),
    ],
    "Studies": [
        (sweep, TyperCommand, "Train a study of many runs and compare them."),
        (compare, TyperCommand, "Show finished runs side by side."),
        (report, TyperCommand, "Write the page of a run."),
    ],
    "Machine": [
        (bench, TyperCommand, "Measure a model file on this machine."),
        (doctor, TyperCommand, "Check this machine."),
        (demo, TyperCommand, "Walk the whole way on handwritten digits."),
    ],
}
for _panel, _commands in _PANELS.items():
    for _module, _class, _help in _commands:
        _name = _module.__name__.rpartition(".")[2]
        app.command(_name, cls=_class, short_help=_help, rich_help_panel=_panel)(_module.command)


# Names of before 0.1, still understood.
_OLD_COMMANDS = {"neighbours": "neighbors"}
_OLD_OPTIONS = {
    "--normalise": "--normalize",
    "--head-start": "--head-init",
    "--calibration-pictures": "--calibration-images",
    "--output": "--out",
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
