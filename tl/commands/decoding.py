"""Choose how many processes decode images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tl.errors import WorkerError

if TYPE_CHECKING:
    from tl.runtime.predictor import Predictor

# With fewer cores, processes gain little over threads; fewer images are decoded before the processes have started.
_CORES_FOR_PROCESSES, _IMAGES_FOR_PROCESSES = 4, 256


def decode_processes(predictor: Predictor[Any], given: int | None, count: int) -> int:
    """Return how many processes decode `count` images, if the user has not `given` it: on CUDA all cores but one, if
    starting them pays off, else 0.
    """
    if given is not None:
        return given
    from tl.runtime.decode_pool import check_can_start
    from tl.runtime.devices import usable_cores
    from tl.runtime.providers import runs_on_cpu

    cores = usable_cores()
    is_cpu = runs_on_cpu(predictor.provider)  # its threads decode while others run inference
    if is_cpu or cores < _CORES_FOR_PROCESSES or count < _IMAGES_FOR_PROCESSES:
        return 0
    try:
        check_can_start()
    except WorkerError:
        return 0
    return cores - 1
