from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from tl.commands.requests import from_flags, given, refuse_given
from tl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Speed:
    threads: Annotated[int | None, typer.Option(help="Threads.")] = None
    keep_slower: Annotated[bool, typer.Option("--keep/--drop", help="Keep.")] = False


@dataclass(frozen=True, kw_only=True)
class Request:
    image: Annotated[str, typer.Argument(help="Image.")]
    speed: Speed
    names: Annotated[list[str] | None, typer.Option("--name", help="Names.")] = None


def run(*words: str) -> Request:
    seen: list[Request] = []

    @from_flags
    def command(request: Request) -> None:
        """Do it."""
        seen.append(request)

    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, [*words])
    assert done.exit_code == 0, done.output
    return seen[0]


def test_from_flags__builds_the_request_and_its_groups() -> None:
    request = run("a.jpg", "--threads", "3", "--name", "x", "--name", "y")
    assert request == Request(image="a.jpg", speed=Speed(threads=3), names=["x", "y"])


def test_from_flags__absent_flags_have_their_defaults() -> None:
    assert run("a.jpg") == Request(image="a.jpg", speed=Speed())


def test_from_flags__help_text_is_the_docstring() -> None:
    @from_flags
    def command(request: Request) -> None:
        """Do it."""

    assert command.__doc__ == "Do it."


def test_given__names_options_as_they_are_typed() -> None:
    assert given(Speed()) == []
    assert given(Speed(threads=2, keep_slower=True)) == ["--threads", "--keep"]


def test_refuse_given__says_which_and_why() -> None:
    refuse_given(Speed(), "not here")
    with pytest.raises(ConfigError, match="--threads: not here"):
        refuse_given(Speed(threads=1), "not here")
