from __future__ import annotations

import pickle
import sys
from unittest.mock import patch

import pytest

from tl.cli import app, main
from tl.errors import ConfigError, ImageReadError, RunInterrupted, TlError, first_line


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("lr is too high", options=["lr=0.1", "clip_norm"]),
        ImageReadError("a.jpg", "is cut off"),
        RunInterrupted("r: interrupted", run_folder="r"),
    ],
)
def test_errors__survive_pickling(error: TlError) -> None:
    copy = pickle.loads(pickle.dumps(error))  # data-loader workers send errors this way
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (ConfigError("plain"), ["tl: plain"]),
        (ConfigError("x", options=["skip_bad"]), ["tl: x", "hint: --skip-bad"]),
        (ConfigError("x", options=["lr=0.1", "out=my run"]), ["tl: x", "hint: --lr 0.1 or --out 'my run'"]),
        (RunInterrupted("x", run_folder="r s"), ["tl: x", "hint: tl train --resume 'r s'"]),
        (RunInterrupted("x"), ["tl: x"]),
    ],
)
def test_main__shows_the_options_that_help_as_flags(
    error: TlError, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with patch("tl.cli.app", side_effect=error), patch.object(sys, "argv", ["tl"]), pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.splitlines() == lines


def test_main__shows_only_flags_that_the_command_has(capsys: pytest.CaptureFixture[str]) -> None:
    error = ConfigError("x", options=["classes=union", "split=all"])  # `classes` belongs to predict alone
    argv, call = patch.object(sys, "argv", ["tl", "evaluate"]), patch.object(type(app), "__call__", side_effect=error)
    with argv, call, pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.splitlines() == ["tl: x", "hint: --split all"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("\x1b[31mred\x1b[0m\nmore", "red"),
        ("", "RuntimeError"),
        (400 * "x", 300 * "x"),
        (
            "Load model from m.onnx failed:/src/core/graph/model.cc:256 ns::Model::Model(P&&, const F<void(int)>&) "
            "Unsupported model IR version: 99",
            "Load model from m.onnx failed: Unsupported model IR version: 99",
        ),
        ("failed:/src/a.h:46 void f(int) const broken", "failed: broken"),
        ("failed:/src/a.h:46 void f(int", "failed:/src/a.h:46 void f(int"),
        ("see /docs/page:46 (and more)", "see /docs/page:46 (and more)"),
    ],
)
def test_first_line__keeps_the_cause(text: str, wanted: str) -> None:
    assert first_line(RuntimeError(text)) == wanted
