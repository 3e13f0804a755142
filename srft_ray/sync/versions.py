"""Published versions of the policy, and which rollouts may start with them. Staleness has this one owner."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

UNKNOWN = -1  # no version is published: nobody is admitted


class OutdatedLearners(RuntimeError):
    """Learners of an earlier start tried to publish; others have taken their place."""


@dataclass(frozen=True)
class LearnerStart:
    """One start of a run by the learners.

    Attributes:
        step: where learners and stream begin.
        generation: increases with every start. What comes from an older one is refused.
        from_model: engines hold the weights of `step` already, because they start from the model itself.
        run: its number in the series.
    """

    step: int
    generation: int
    from_model: bool
    run: int = 0


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


def fingerprint_of(hashes: int) -> str:
    """The fingerprint of weights whose tensors have hashes of this sum, 16 hexadecimal digits."""
    return f"{hashes % 2**64:016x}"


@dataclass(frozen=True)
class WeightShare:
    """What one rank of the learners publishes of a version.

    Attributes:
        rank: its number.
        hashes: the sum of the hashes of those tensors that fell to this rank (`sync.fingerprint`).
        pieces: parts of tensors, or references to them; nobody looks into them here. None: the learner keeps
            them, and gives them when an engine asks for them.
        ranks: how many ranks publish the version; 0 unless this one is the sender, which speaks for all.
        headers: the sender's, of the files that the pieces belong to (`sync.pieces`).
    """

    version: int
    rank: int = 0
    hashes: int = 0
    pieces: Sequence[Any] | None = ()
    ranks: int = 0
    headers: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Publication:
    """A published version; there are no headers for the model that the engines started from.

    Attributes:
        pieces: None if a learner keeps its own until they are asked for.
    """

    weights: PolicyWeights
    headers: Mapping[str, bytes] = field(default_factory=dict)
    pieces: Sequence[Any] | None = ()


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
        self.newest = Publication(PolicyWeights(UNKNOWN))
        self.unread = 0  # publications of the run that were replaced before a node had their weights
        self._read = False
        self._engines_are_new = not forgot
        self._starts: list[LearnerStart] = []
        self._arriving: dict[int, dict[int, WeightShare]] = {}  # by version and rank
        self._shares: dict[int, WeightShare] = {}  # of the newest version
        self._asked = False  # for the pieces of the newest version

    def restart(
        self, step: int, now: float, run: int = 0, later: Sequence[tuple[int, int]] = ()
    ) -> LearnerStart:
        """The learners start (again) at the checkpoint of `step`, and have to publish its weights.

        Only the first start of all at step 0 needs no publication: all engines hold the model itself then.

        Args:
            now: seconds since the epoch. Generations are not below its milliseconds, so that they increase
                even if the last ones were forgotten.
            run: the number of the run in its series.
            later: runs that the same learners train after it, each with the step where it begins.
        """
        from_model = step == 0 and self._engines_are_new
        self._engines_are_new = False
        given = self._starts[-1].generation if self._starts else 0
        self.generation = max(self.generation + 1, given + 1, int(1000 * now))
        start = LearnerStart(step, self.generation, from_model, run)
        followers = [
            LearnerStart(first, self.generation + number, False, following)
            for number, (following, first) in enumerate(later, 1)
        ]
        self._starts = [start, *followers]
        self._arriving = {}
        self._replace(Publication(PolicyWeights(0 if from_model else UNKNOWN)))
        return start

    @property
    def offered(self) -> PolicyWeights:
        """The newest version."""
        return self.newest.weights

    @property
    def starts(self) -> list[LearnerStart]:
        """The present start of the learners, and those of the runs that they train after it.

        Raises:
            RuntimeError: this object was made anew after `restart`.
        """
        if not self._starts:
            raise RuntimeError("the coordinator was restarted while the learners started")
        return self._starts

    def publish(self, generation: int, share: WeightShare) -> None:
        """Takes one rank's share of a version, which is the newest one when the shares of all ranks are here.

        A share that comes again is ignored, unless it has the pieces that were asked for.

        Raises:
            OutdatedLearners: it comes from an earlier start of the learners.
        """
        if self.has(generation, share.version, share.rank) or share.version < self.offered.version:
            return
        if share.version == self.offered.version:
            self._shares[share.rank] = share
            self.newest = _whole(self._shares)
            return
        shares = self._arriving.setdefault(share.version, {})
        shares[share.rank] = share
        sender = next((one for one in shares.values() if one.ranks), None)
        if sender is None or set(shares) != set(range(sender.ranks)):
            return
        if self.newest.headers and not self._read:
            self.unread += 1
        self._replace(_whole(shares), shares)

    def has(self, generation: int, version: int, rank: int) -> bool:
        """Whether a rank's share of a version is here, or the version is published; not if the newest version
        lacks pieces of that rank that were asked for.

        Raises:
            OutdatedLearners: learners of an earlier start ask.
        """
        self.enter(generation)
        if self.offered.version < version:
            return rank in self._arriving.get(version, {})
        return not self._asked or rank not in self._shares or self._shares[rank].pieces is not None

    def ask_for_pieces(self, version: int) -> None:
        """The learners are to give the pieces that they keep; in vain if that version is replaced."""
        self._asked = self._asked or version == self.offered.version

    def needed(self, step: int, exact: bool) -> int:
        """The oldest version that a group of `step` may be sampled by; if `exact`, `step` itself."""
        return max(0, step if exact else step - self.max_staleness)

    def admits(self, generation: int, step: int, exact: bool) -> bool:
        """Whether a group of `step` may start now; never while another generation is trained."""
        return generation == self.generation and self.offered.version >= self.needed(step, exact)

    def read(self) -> Publication:
        """The newest version, for the engine that writes the copy of its node."""
        self._read = True
        return self.newest

    def enter(self, generation: int) -> None:
        """Raises OutdatedLearners for learners of an earlier start."""
        if generation < self.generation:
            raise OutdatedLearners(
                f"learners of start {generation} published, but start {self.generation} has taken their place"
            )
        # They begin the next run of their series. Or the memory of their start is lost.
        if generation > self.generation:
            self.generation = generation
            self.unread = 0
            self._arriving = {}
            self._replace(Publication(PolicyWeights(UNKNOWN)))

    def _replace(self, newest: Publication, shares: dict[int, WeightShare] | None = None) -> None:
        self.newest = newest
        self._shares = shares or {}
        self._read = self._asked = False
        # Shares of older versions may have come, from before a death of the process; they are of no use.
        version = newest.weights.version
        self._arriving = {later: shares for later, shares in self._arriving.items() if later > version}


def _whole(shares: Mapping[int, WeightShare]) -> Publication:
    """The version that consists of the shares of all ranks."""
    [sender] = [share for share in shares.values() if share.ranks]
    hashes = sum(share.hashes for share in shares.values())
    weights = PolicyWeights(sender.version, fingerprint_of(hashes) if sender.headers else "")
    parts = [shares[rank].pieces for rank in sorted(shares)]
    pieces = None if any(part is None for part in parts) else [piece for part in parts for piece in part]
    return Publication(weights, sender.headers, pieces)
