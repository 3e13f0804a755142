"""Published versions of the policy, and which rollouts may start with them. Staleness has this one owner."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNKNOWN = -1  # no version is published: nobody is admitted


class OutdatedLearners(RuntimeError):
    """Learners of an earlier start tried to publish; others have taken their place."""


@dataclass(frozen=True)
class LearnerStart:
    """One start of the learners.

    Attributes:
        step: where learners and stream begin.
        generation: increases with every start of the run. What comes from an older one is refused.
        from_model: engines hold the weights of `step` already, because they start from the model itself.
    """

    step: int
    generation: int
    from_model: bool


@dataclass(frozen=True)
class PolicyWeights:
    """Identity of weights: whoever holds the same version with the same fingerprint holds the same tensors.

    Attributes:
        version: optimizer steps behind them.
        fingerprint: of all tensors (`sync.fingerprint`); empty for the model that the engines start from,
            whose fingerprint the coordinator does not know.
    """

    version: int
    fingerprint: str = ""


class PublishedVersions:
    """The newest version of the policy and the pieces of its weights; no Ray, no clock, no waiting.

    Version v is the policy after v optimizer steps. A group of step s may start when the newest version is at
    least s - max_staleness. The version is `UNKNOWN` while the learners have not published yet, and after a
    restart of the process that holds this object, which forgets everything; then the learners publish again.
    """

    def __init__(self, max_staleness: int, forgot: bool = False) -> None:
        """`forgot`: another object held the versions of this run before, and its memory is lost."""
        self.max_staleness = max_staleness
        self.generation = 0
        self.offered = PolicyWeights(UNKNOWN)
        self.unread = 0  # publications that were replaced before an engine asked for their weights
        self._read = False
        self._engines_are_new = not forgot
        self._start: LearnerStart | None = None
        self._pieces: dict[int, Any] = {}
        self._arriving: dict[int, Any] = {}

    def restart(self, step: int, now: float) -> LearnerStart:
        """The learners start (again) at the checkpoint of `step`, and have to publish its weights.

        Only the first start of a run at step 0 needs no publication: all engines hold the model itself then.

        Args:
            now: seconds since the epoch. Generations are not below it, so that they increase even if the last
                one was forgotten.
        """
        from_model = step == 0 and self._engines_are_new
        self._engines_are_new = False
        self.generation = max(self.generation + 1, int(now))
        self._start = LearnerStart(step, self.generation, from_model)
        self._replace(PolicyWeights(0 if from_model else UNKNOWN), {})
        return self._start

    @property
    def start(self) -> LearnerStart:
        """The present start of the learners.

        Raises:
            RuntimeError: this object was made anew after `restart`.
        """
        if self._start is None:
            raise RuntimeError("the coordinator was restarted while the learners started")
        return self._start

    def add_piece(self, generation: int, number: int, piece: Any) -> None:
        """Takes one piece of the next version's weights; a piece that comes again replaces the first.

        Raises:
            OutdatedLearners: it comes from an earlier start of the learners.
        """
        self.enter(generation)
        self._arriving[number] = piece

    def publish(self, generation: int, weights: PolicyWeights, count: int) -> None:
        """Makes the `count` pieces added so far the newest version.

        Raises:
            OutdatedLearners: it comes from an earlier start of the learners.
            RuntimeError: some pieces were lost with a restart of the process.
        """
        self.enter(generation)
        if set(self._arriving) != set(range(count)):
            raise RuntimeError(
                f"{len(self._arriving)} of {count} pieces of version {weights.version} are here"
            )
        if self._pieces and not self._read:
            self.unread += 1
        self._replace(weights, self._arriving)

    def needed(self, step: int, exact: bool) -> int:
        """The oldest version that a group of `step` may be sampled by; if `exact`, `step` itself."""
        return max(0, step if exact else step - self.max_staleness)

    def admits(self, step: int, exact: bool) -> bool:
        """Whether a group of `step` may start now."""
        return self.offered.version >= self.needed(step, exact)

    def weights(self) -> tuple[PolicyWeights, list[Any]]:
        """(identity, pieces in order); there are no pieces for the model that the engines started from."""
        self._read = True
        return self.offered, [self._pieces[number] for number in sorted(self._pieces)]

    def enter(self, generation: int) -> None:
        """Raises OutdatedLearners for learners of an earlier start."""
        if generation < self.generation:
            raise OutdatedLearners(
                f"learners of start {generation} published, but start {self.generation} has taken their place"
            )
        if generation > self.generation:  # the memory of its start is lost, the learners themselves are not
            self.generation = generation
            self._arriving = {}

    def _replace(self, weights: PolicyWeights, pieces: Mapping[int, Any]) -> None:
        self.offered = weights
        self._pieces = dict(pieces)
        self._read = False
        self._arriving = {}
