"""The weights that an engine holds, when they may be replaced, and which of them sampled a rollout."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

from algorithms import Completion, Group
from srft_ray.sync.versions import PolicyWeights


@dataclass(frozen=True)
class EngineWeights:
    """What an engine holds from one load to the next.

    Attributes:
        policy: which weights they are.
        load: the number of the load that brought them; 0 for those that the engine started with.
        probe: the engine's log-probs of a fixed sequence with them, in nats (`sync.probe`); may be empty.
    """

    policy: PolicyWeights
    load: int = 0
    probe: tuple[float, ...] = ()


class Held:
    """The weights that the engine holds while a block is in flight, in the order of their loads.

    Attributes:
        exact: all sequences of the block must be of one version.
    """

    def __init__(self, weights: EngineWeights, exact: bool) -> None:
        self.weights = [weights]
        self.exact = exact

    def sign(self, rollout: Completion, loads: Sequence[tuple[int, int]]) -> None:
        """Says of a rollout which versions sampled it.

        Args:
            loads: (number of a load, first token sampled after it), tokens of the rollout's prefix left out.
        """
        versions = {weights.load: weights.policy.version for weights in self.weights}
        every = [(versions[load], rollout.prefix + first) for load, first in loads]
        spans = [next(same) for _, same in groupby(every, key=lambda span: span[0])]
        if len(spans) > 1:
            rollout.spans = [(spans[0][0], 0), *spans[1:]]
        oldest = self.weights[0].policy.version
        rollout.policy_version = min((version for version, _ in spans), default=oldest)

    def prove(self, group: Group) -> None:
        """Says of a group what proves which weights the engine held."""
        for weights in self.weights:
            version, fingerprint = weights.policy.version, weights.policy.fingerprint
            known = group.fingerprints.get(version, fingerprint)
            # Other weights under the same number prove nothing: the learners refuse what has two names.
            group.fingerprints[version] = known if known == fingerprint else f"{known} and {fingerprint}"
            if weights.probe:
                group.probes[version] = weights.probe


class LoadedVersion:
    """When the weights of an engine are replaced.

    Every sequence is sampled by one version: other weights are loaded only while no block is in flight. With
    updates in flight they are loaded while blocks are in flight whose sequences may be of several versions.

    Blocks enter from several threads. One that cannot be sampled by what the engine holds waits until the
    others have left that are in the way, and loads the newest weights.
    """

    def __init__(
        self,
        weights: EngineWeights,
        load: Callable[[PolicyWeights], EngineWeights],
        timeout_s: float,
        in_flight_updates: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            weights: those that the engine starts with.
            load: brings those that are offered into it, or newer ones.
            timeout_s: for the blocks in flight to end.
            in_flight_updates: whether sequences in flight go on with weights that are loaded now.
        """
        self.weights = weights
        self.generation = 0  # of the learners' start that the weights were compared with
        self.loading = False
        self._blocks: list[Held] = []
        self._load = load
        self._timeout_s = timeout_s
        self._in_flight_updates = in_flight_updates
        self._changed = threading.Condition()

    @property
    def in_flight(self) -> int:
        """Blocks in flight."""
        return len(self._blocks)

    @contextmanager
    def hold(
        self, needed: int, offered: PolicyWeights, generation: int, exact: bool = False
    ) -> Iterator[Held]:
        """A block is in flight for the length of the context.

        Gives what the engine holds meanwhile; it is complete when the context has ended.

        Args:
            needed: oldest version that the block may be sampled by.
            offered: the newest published weights, which are loaded if nothing is in the way.
            generation: of the learners' start that published them.
            exact: all its sequences must be of one version.

        Raises:
            TimeoutError: the blocks in flight did not finish.
        """
        with self._changed:
            self._prepare(needed, offered, generation)
            held = Held(self.weights, exact)
            self._blocks.append(held)
        try:
            yield held
        finally:
            # Weights are loaded with the lock, so that a load that a sequence of the block has seen is over.
            with self._changed:
                self._blocks.remove(held)
                self._changed.notify_all()

    def _prepare(self, needed: int, offered: PolicyWeights, generation: int) -> None:
        """Called with the lock: loads what is offered if the block needs it or nothing is in the way."""
        while self._must_load(needed, offered, generation) or self._may_load(offered):
            if self._is_free():
                self._replace(offered)
                break  # what a load brings is not compared again: the learners refuse wrong weights
            if not self._changed.wait(self._timeout_s):
                raise TimeoutError(
                    f"{self.in_flight} blocks of rollouts did not finish within "
                    f"rollout.timeout_s={self._timeout_s:.0f} s, so that policy version {needed} could not "
                    "be loaded."
                )
        self.generation = max(self.generation, generation)

    def _is_free(self) -> bool:
        """Whether no block is in the way of other weights."""
        if self._in_flight_updates():
            return not any(held.exact for held in self._blocks)
        return not self._blocks

    def _may_load(self, offered: PolicyWeights) -> bool:
        return self._is_free() and self.weights.policy.version < offered.version

    def _must_load(self, needed: int, offered: PolicyWeights, generation: int) -> bool:
        """Whether the engine's version is too old, or not the one of that number that the learners publish
        now.

        A version above the one that is offered was loaded for another block meanwhile, unless the learners
        have started again: they may have gone back to a checkpoint.
        """
        policy = self.weights.policy
        if policy.version < needed:
            return True
        same_version = policy.version == offered.version
        if same_version and not offered.fingerprint:  # the model itself, which the engine started from
            return False
        started_again = generation > self.generation
        return (same_version or started_again) and policy != offered

    def _replace(self, offered: PolicyWeights) -> None:
        self.loading = True
        try:
            self.weights = self._load(offered)
        finally:
            self.loading = False
        for held in self._blocks:
            held.weights.append(self.weights)
