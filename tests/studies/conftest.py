"""Runs to report on, shared by the tests of studies."""

from __future__ import annotations

from tests.trainer.conftest import _torch_as_before as _torch_as_before
from tests.trainer.conftest import finished_run as finished_run
from tests.trainer.conftest import photos as photos
from tests.trainer.landmarks.conftest import spot_run as spot_run
from tests.trainer.landmarks.conftest import spots as spots
