"""The weights that an engine holds, and when they may be replaced."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from srft_ray.sync.versions import PolicyWeights


class LoadedVersion:
    """Every sequence is sampled by one version: other weights are loaded only while no block is in flight.

    Blocks enter from several threads. One that cannot be sampled by what the engine holds waits until the
    others have left, and loads the newest weights.
    """

    def __init__(self, weights: PolicyWeights, load: Callable[[], PolicyWeights], timeout_s: float) -> None:
        """The engine starts with `weights`; `load` brings the newest ones into it, within `timeout_s`."""
        self.weights = weights
        self.generation = 0  # of the learners' start that the weights were compared with
        self.in_flight = 0
        self.loading = False
        self._load = load
        self._timeout_s = timeout_s
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, needed: int, offered: PolicyWeights, generation: int) -> Iterator[PolicyWeights]:
        """Keeps the engine's weights for a block, for the length of the context; gives their identity.

        Args:
            needed: oldest version that the block may be sampled by.
            offered: the newest published weights, which are loaded if the engine is idle anyway.
            generation: of the learners' start that published them.

        Raises:
            TimeoutError: the blocks in flight did not finish.
        """
        with self._changed:
            self._prepare(needed, offered, generation)
            self.in_flight += 1
            weights = self.weights
        try:
            yield weights
        finally:
            with self._changed:
                self.in_flight -= 1
                self._changed.notify_all()

    def _prepare(self, needed: int, offered: PolicyWeights, generation: int) -> None:
        """Called with the lock: loads the newest weights if the block needs them or the engine is idle."""
        while self._must_load(needed, offered, generation) or self._may_load(offered):
            if self.in_flight == 0:
                self._replace()
                break  # what a load brings is not compared again: the learners refuse wrong weights
            if not self._changed.wait(self._timeout_s):
                raise TimeoutError(
                    f"{self.in_flight} blocks of rollouts did not finish within "
                    f"rollout.timeout_s={self._timeout_s:.0f} s, so that policy version {needed} could not "
                    "be loaded."
                )
        self.generation = max(self.generation, generation)

    def _may_load(self, offered: PolicyWeights) -> bool:
        return self.in_flight == 0 and self.weights.version < offered.version

    def _must_load(self, needed: int, offered: PolicyWeights, generation: int) -> bool:
        """Whether the engine's version is too old, or not the one of that number that the learners publish
        now.

        A version above the one that is offered was loaded for another block meanwhile, unless the learners
        have started again: they may have gone back to a checkpoint.
        """
        if self.weights.version < needed:
            return True
        same_version = self.weights.version == offered.version
        if same_version and not offered.fingerprint:  # the model itself, which the engine started from
            return False
        started_again = generation > self.generation
        return (same_version or started_again) and self.weights != offered

    def _replace(self) -> None:
        self.loading = True
        try:
            self.weights = self._load()
        finally:
            self.loading = False
