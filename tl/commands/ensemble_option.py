"""`--ensemble a.onnx b.onnx c.onnx`: one flag, any number of following model files, in any position.

Knows the command line's words. Does not know models. The repeated form `--ensemble a.onnx --ensemble b.onnx` works too.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

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
