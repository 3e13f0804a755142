"""The policy version that an engine holds, and when it may be replaced."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class LoadedVersion:
    """Every sequence is sampled by one version: newer weights are loaded only while no block is in flight.

    Blocks enter from several threads. One that needs a newer version than the engine holds waits until the
    others have left, and loads it.
    """

    def __init__(self, load: Callable[[], int], timeout_s: float) -> None:
        """`load` brings the newest version into the engine and returns it, within `timeout_s`."""
        self.version = 0
        self.in_flight = 0
        self.loading = False
        self._load = load
        self._timeout_s = timeout_s
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, needed: int, newest: int) -> Iterator[int]:
        """Keeps the engine's version for a block, for the length of the context; gives that version.

        Args:
            needed: oldest version that the block may be sampled by.
            newest: version that is loaded if the engine is idle anyway.

        Raises:
            TimeoutError: the blocks in flight did not finish.
        """
        with self._changed:
            self._bring_to(needed, newest)
            self.in_flight += 1
            version = self.version
        try:
            yield version
        finally:
            with self._changed:
                self.in_flight -= 1
                self._changed.notify_all()

    def _bring_to(self, needed: int, newest: int) -> None:
        """Called with the lock: loads a version if the block needs it, or if the engine is idle anyway."""
        while self.version < needed or (self.in_flight == 0 and self.version < newest):
            if self.in_flight == 0:
                self._replace()
            elif not self._changed.wait(self._timeout_s):
                raise TimeoutError(
                    f"{self.in_flight} blocks of rollouts did not finish within rollout.timeout_s={self._timeout_s:.0f} "
                    f"s, so that policy version {needed} could not be loaded."
                )

    def _replace(self) -> None:
        self.loading = True
        try:
            self.version = self._load()
        finally:
            self.loading = False
