"""Published versions of the policy, and which rollouts may start with them. Staleness has this one owner."""

from collections.abc import Mapping
from typing import Any

UNKNOWN = -1  # no version is published: nobody is admitted


class PublishedVersions:
    """The newest version of the policy and the pieces of its weights; no Ray, no clock, no waiting.

    Version v is the policy after v optimizer steps. A group of step s may start when the newest version is at
    least s - max_staleness. The version is `UNKNOWN` while the learners have not published yet, and after a
    restart of the process that holds this object, which forgets everything; then the learners publish again
    (`transport`).
    """

    def __init__(self, max_staleness: int) -> None:
        self.max_staleness = max_staleness
        self.newest = UNKNOWN
        self._start_step: int | None = None
        self._pieces: dict[int, Any] = {}
        self._arriving: dict[int, Any] = {}

    def restart(self, step: int) -> None:
        """The learners start (again) at the checkpoint of `step`, and have to publish its weights.

        Version 0 needs no publication: engines start from the model itself.
        """
        self._start_step = step
        self._replace(0 if step == 0 else UNKNOWN, {})

    @property
    def start_step(self) -> int:
        """The step that learners and stream begin at.

        Raises:
            RuntimeError: this object was made anew after `restart`.
        """
        if self._start_step is None:
            raise RuntimeError("the coordinator was restarted while the learners started")
        return self._start_step

    def add_piece(self, number: int, piece: Any) -> None:
        """Takes one piece of the next version's weights; a piece that comes again replaces the first."""
        self._arriving[number] = piece

    def publish(self, version: int, count: int) -> None:
        """Makes the `count` pieces added so far the weights of `version`.

        Raises:
            RuntimeError: some of them were lost with a restart of the process.
        """
        if set(self._arriving) != set(range(count)):
            raise RuntimeError(f"{len(self._arriving)} of {count} pieces of version {version} are here")
        self._replace(version, self._arriving)

    def needed(self, step: int, exact: bool) -> int:
        """The oldest version that a group of `step` may be sampled by; `exact` asks for version `step`
        (evaluation).
        """
        return max(0, step if exact else step - self.max_staleness)

    def admits(self, step: int, exact: bool) -> bool:
        """Whether a group of `step` may start now."""
        return self.newest >= self.needed(step, exact)

    def weights(self) -> tuple[int, list[Any]]:
        """(version, its pieces in order); there are no pieces for the model that the engines started from."""
        return self.newest, [self._pieces[number] for number in sorted(self._pieces)]

    def _replace(self, version: int, pieces: Mapping[int, Any]) -> None:
        self.newest = version
        self._pieces = dict(pieces)
        self._arriving = {}
