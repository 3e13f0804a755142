"""What the coordinator knows of the learners: what they are asked to do, and whether there are any."""

from srft_ray.sync.processes import Process


class LearnerRequests:
    """Requests to the learners to leave between two steps, and the reason that ends the run."""

    def __init__(self) -> None:
        self.stop_reason = ""
        self.abort_reason = ""
        self._leave_reason = ""

    @property
    def leave_reason(self) -> str:
        """Why the learners are to leave; empty if they are not."""
        return self.stop_reason or self._leave_reason

    @property
    def leaving(self) -> bool:
        """Whether learners that were asked to leave have not done so."""
        return bool(self._leave_reason)

    def stop(self, reason: str) -> None:
        """The learners are to finish or drop their step, write a checkpoint and leave; for good."""
        self.stop_reason = reason
        self._leave_reason = reason

    def leave(self, reason: str) -> None:
        """The same, to start again at once. The first reason is kept."""
        self._leave_reason = self._leave_reason or reason

    def left(self) -> None:
        """The learners have left."""
        self._leave_reason = ""

    def restart(self) -> None:
        """New learners start: only a stop concerns them too."""
        self._leave_reason = self.stop_reason

    def abort(self, reason: str) -> None:
        """The run ends for a reason that a restart would only repeat."""
        self.abort_reason = reason


class LearnerPresence:
    """Since when there have been no learners, in monotonic seconds, and which process is to start them."""

    def __init__(self, now: float) -> None:
        self.controller = Process()  # of Ray Train; the default while it is not known
        self._absent_since: float | None = now

    def set(self, present: bool, controller: Process, now: float) -> None:
        """Whether there are learners, says the process that starts them."""
        self.controller = controller
        if present:
            self._absent_since = None
        elif self._absent_since is None:
            self._absent_since = now

    def absent_s(self, now: float) -> float:
        """Seconds without learners; 0 if there are some."""
        return 0.0 if self._absent_since is None else now - self._absent_since
