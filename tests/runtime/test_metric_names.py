from __future__ import annotations

import pytest

from tl.runtime.metric_names import plain_name


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("top1_accuracy", "top-1 accuracy"),
        ("ece", "calibration error"),
        ("ci_low", "95% from"),
        ("val_top1_accuracy", "validation top-1 accuracy"),
        ("train_error_input_px", "training mean error, input px"),
        ("test_error_px_high", "test mean error, px, 95% to"),
        ("train_seconds", "training, s"),
        ("model", "model"),
        ("learning_rate_low", "learning_rate_low"),
        ("test_split", "test_split"),
    ],
)
def test_plain_name__metrics_alone_are_translated(name: str, plain: str) -> None:
    assert plain_name(name) == plain
