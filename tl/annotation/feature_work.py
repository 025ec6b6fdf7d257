"""The thread that opens a network and computes the features of all photos, and what it says of its progress."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from tl.annotation.features import FeatureSource, PhotoFeatures
from tl.errors import TlError

_log = logging.getLogger(__name__)
# Opens what computes features, which may take seconds. Raises `TlError`.
OpenSource = Callable[[], FeatureSource]


class FeatureWork:
    """Computes features in the background. `features`: None until the network is open. `error`: why there are none.

    `told` is called when there are more; `opens`: None for a session without features.
    """

    def __init__(self, paths: Sequence[str], opens: OpenSource | None, told: Callable[[], None]) -> None:
        self._paths, self._opens, self._told = paths, opens, told
        self.features: PhotoFeatures | None = None
        self.error = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="features", daemon=True)

    def start(self) -> None:
        """Begin, if there is something to compute."""
        if self._opens is not None:
            self._thread.start()

    def close(self) -> None:
        """Stop after the images in progress; what was computed is kept for the next start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        try:
            if self._opens is not None:
                features = PhotoFeatures(self._paths, self._opens())
                features.matrix[:] = 0  # rows that are never computed, as of unreadable photos, have a value
                self.features = features
                features.run(self._stop, lambda done: self._told())
        except TlError as error:
            self.error = str(error)
        except Exception:
            _log.exception("a fault of this program while computing features")
            self.error = "a fault of this program: the terminal says more"
        self._told()

    @property
    def done(self) -> int:
        """Number of photos that need no more work."""
        return 0 if self.features is None else self.features.done

    @property
    def errors(self) -> dict[int, str]:
        """Why photos have no features, by image."""
        return {} if self.features is None else self.features.errors
