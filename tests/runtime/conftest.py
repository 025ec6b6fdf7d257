"""Settings for the runtime's tests, which also run where torch, typer and pydantic are not installed."""

from __future__ import annotations

from hypothesis import settings

# No deadline: a busy machine is not an error. Derandomized, so that a failing test fails again when it is rerun.
settings.register_profile("runtime", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("runtime")
