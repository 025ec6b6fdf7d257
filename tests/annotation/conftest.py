"""Small image folders and a finished run, shared with the trainer's tests."""

from __future__ import annotations

from tests.trainer.conftest import _torch_as_before as _torch_as_before
from tests.trainer.conftest import finished_run as finished_run
from tests.trainer.conftest import photos as photos
