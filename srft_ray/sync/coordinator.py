"""The actor that outlives learners and engines. It owns the published versions."""

import asyncio
import math
import time
from collections.abc import Sequence
from functools import partial

import ray

from srft_ray.sync.admission import Admission
from srft_ray.sync.admission_queue import ADMISSION_WAIT_S, MAX_WAITING, AdmissionQueue
from srft_ray.sync.changes import Changes
from srft_ray.sync.engine_deaths import EngineDeath, EngineDeaths, EngineProcess
from srft_ray.sync.health import HEARTBEAT_INTERVAL_S, HealthMonitor, Heartbeat
from srft_ray.sync.history import HistoryPieces
from srft_ray.sync.learners import LearnerPresence, LearnerRequests
from srft_ray.sync.memory import return_large_pieces
from srft_ray.sync.processes import Process
from srft_ray.sync.round_messages import Entry, Notice, Round, Waiting
from srft_ray.sync.rounds import Rounds
from srft_ray.sync.versions import LearnerStart, Publication, PublishedVersions, WeightShare


class Coordinator:
    """Holds one object for each of its jobs and delegates to them; run it as a Ray actor.

    It knows where the weights are; the learners hold them. If this actor dies, Ray starts it again without
    its memory: it admits nobody, and the learners tell it again.
    """

    def __init__(
        self, max_staleness: int, monitor: HealthMonitor | None = None, max_waiting: int = MAX_WAITING
    ) -> None:
        """`max_waiting`: admissions that may wait at a time, fewer than the actor's `max_concurrency`."""
        forgot = False
        if ray.is_initialized():  # an actor, and not an object of a test
            forgot = ray.get_runtime_context().was_current_actor_reconstructed
            return_large_pieces()
        self.versions = PublishedVersions(max_staleness, forgot)
        self.history = HistoryPieces()
        self.monitor = monitor or HealthMonitor(math.inf, print)
        self.rounds = Rounds(partial(self.monitor.report, "transport"))
        self.deaths = EngineDeaths(self.monitor.report)
        self.requests = LearnerRequests()
        self.presence = LearnerPresence(time.monotonic())
        self._changes = Changes()  # of the published version, or of the learners' requests
        self._queue = AdmissionQueue(self.versions, self._changes, max_waiting)
        self._groups_taken = 0  # by the learners since they started
        self._health_checks: asyncio.Task[None] | None = None
        if forgot:
            what = "the actor that knows the published versions died and was started again"
            self.monitor.report("coordinator", f"{what}; the learners tell it again")

    # Versions

    async def restart(self, step: int, run: int = 0, later: Sequence[tuple[int, int]] = ()) -> LearnerStart:
        """As of `PublishedVersions`: what comes from earlier learners is refused."""
        start = self.versions.restart(step, time.time(), run, later)
        self.history.restart()
        self.requests.restart()
        self.monitor.restart(start.generation)
        await self.rounds.close()
        await self._changes.notify()
        return start

    async def learner_starts(self) -> list[LearnerStart]:
        """Where learners and stream begin each run; RuntimeError if `restart` was forgotten."""
        return self.versions.starts

    async def _enter(self, generation: int) -> None:
        """Raises OutdatedLearners for earlier learners; those who begin the next run have left the one
        before."""
        is_next = generation > self.versions.generation
        self.versions.enter(generation)
        if is_next:
            self.history.restart()
            await self.rounds.close()
            await self._changes.notify()

    async def publish(self, generation: int, share: WeightShare) -> None:
        """Takes one rank's share of a version, which is the newest one when the shares of all ranks are
        here."""
        await self._enter(generation)
        before = self.versions.newest
        self.versions.publish(generation, share)
        if self.versions.newest.weights != before.weights:
            if self.rounds.reached(share.version):
                self.versions.read()
            self.deaths.published()
        if self.versions.newest is not before:
            await self._changes.notify()

    async def has_share(self, generation: int, version: int, rank: int, wait_s: float = 0.0) -> bool:
        """Whether a rank need not send its share of a version again; OutdatedLearners for earlier learners.

        Waits at most `wait_s` until it has to: a call that is on its way when this actor dies is answered by
        the next one, which has forgotten the share.
        """
        await self._enter(generation)
        await self._changes.wait_until(lambda: not self.versions.has(generation, version, rank), wait_s)
        return self.versions.has(generation, version, rank)

    async def history_until(self, generation: int) -> int:
        """The step before which the history of prompts is here; OutdatedLearners for earlier learners."""
        await self._enter(generation)
        return self.history.until

    async def add_history(self, generation: int, first: int, until: int, piece: object) -> None:
        """Takes what happened to prompts in the steps from `first` to before `until`; RuntimeError if steps
        before are missing."""
        await self._enter(generation)
        self.history.add(first, until, piece)

    async def compact_history(self, generation: int, until: int, piece: object) -> None:
        """Takes what is still shown of the steps before `until`, in the place of all that happened in
        them."""
        await self._enter(generation)
        self.history.compact(until, piece)

    async def history_since(self, step: int) -> tuple[int, int, list[object]]:
        """(start of the learners, step before which the history is here, its pieces from `step` on)."""
        return self.versions.generation, self.history.until, self.history.since(step)

    async def weights(self) -> Publication:
        """The newest version with its pieces, for the engine that writes the copy of its node."""
        return self.versions.read()

    async def pieces(self, version: int, wait_s: float) -> Publication:
        """The newest version. While that is `version`, waits at most `wait_s` until the learners have given
        the pieces of it that they keep."""
        self.versions.ask_for_pieces(version)
        await self._changes.notify()
        await self._changes.wait_until(
            lambda: self.versions.offered.version != version or self.versions.newest.pieces is not None,
            wait_s,
        )
        return self.versions.newest

    async def admit(
        self, generation: int, step: int, exact: bool = False, wait_s: float = ADMISSION_WAIT_S
    ) -> Admission:
        """Whether a group of `step` may start; waits for it at most `wait_s` and ADMISSION_WAIT_S seconds.

        `generation`: of the learners' start that the group is for; it waits while another one is trained.
        """
        admitted, busy = await self._queue.wait(generation, step, exact, wait_s)
        needed = self.versions.needed(step, exact)
        offered, present = self.versions.offered, self.versions.generation
        progress = (present, offered.version, self._groups_taken, self.monitor.finished)
        return Admission(admitted, offered, present, needed, busy, progress)

    # Rounds of the collective transport

    async def enter_round(self, generation: int, entry: Entry, wait_s: float) -> Round | None:
        """As `Rounds.enter`; OutdatedLearners for earlier learners."""
        await self._enter(generation)
        return await self.rounds.enter(generation, entry, wait_s)

    async def next_round(self, waiting: Waiting, wait_s: float) -> Notice:
        return await self.rounds.next(waiting, wait_s)

    async def join_round(self, name: str, listener: str, group: str, folder: str) -> Round | None:
        return await self.rounds.join(name, listener, group, folder)

    async def round_failed(self, name: str, problem: str) -> None:
        await self.rounds.failed(name, problem)

    # Engines

    async def heartbeat(self, heartbeat: Heartbeat) -> float:
        """An engine says that it lives, and what it does; gives the seconds until it is to do so again."""
        self.monitor.heartbeat(heartbeat, time.monotonic())
        self.deaths.finished(heartbeat.engine, heartbeat.finished)
        if self._health_checks is None:
            self._health_checks = asyncio.create_task(self._check_health())
        return self.monitor.interval_s

    async def engine_started(self, process: EngineProcess) -> EngineProcess | None:
        """A process of an engine starts; gives the one before it if nobody has told of its death."""
        return self.deaths.started(process, time.monotonic())

    async def engine_died(self, death: EngineDeath) -> None:
        """A process of an engine ends or has ended."""
        self.deaths.died(death, time.monotonic())

    async def engine_problem(self) -> str:
        """Why no engine is to be started any more; empty while there is no reason."""
        return self.deaths.problem

    async def engine_metrics(self, groups_taken: int, version: int = 0) -> dict[str, float]:
        """Living engines, groups that wait for the learners, who have taken `groups_taken`, publications that
        nobody read, and nodes that `version` reached."""
        self._groups_taken = groups_taken
        publications = {
            "publications/unread": float(self.versions.unread),
            "publications/nodes_reached": float(self.rounds.reached(version)),
        }
        return self.monitor.metrics(groups_taken, time.monotonic()) | publications

    # Learners

    async def request_stop(self, reason: str) -> None:
        """The learners are to finish or drop their step, write a checkpoint and leave; for good."""
        self.requests.stop(reason)
        await self._changes.notify()

    async def request_leave(self, reason: str, timeout_s: float) -> bool:
        """The same, to start again at once; waits until they have left. False: they did not in time."""
        self.requests.leave(reason)
        await self._changes.notify()
        return await self._changes.wait_until(lambda: not self.requests.leaving, timeout_s)

    async def leave_requested(self, wait_s: float = 0.0) -> str:
        """Why the learners are to leave; empty if they are not. Waits at most `wait_s` for a reason."""
        await self._changes.wait_until(lambda: bool(self.requests.leave_reason), wait_s)
        return self.requests.leave_reason

    async def learners_left(self) -> None:
        self.requests.left()
        await self.rounds.close()
        await self._changes.notify()

    async def set_learners_present(self, present: bool, controller: Process) -> None:
        """Whether there are learners, says the process of Ray Train that starts them."""
        self.presence.set(present, controller, time.monotonic())

    async def learners_absent(self) -> tuple[float, Process]:
        """Seconds without learners, and the process that is to start them."""
        return self.presence.absent_s(time.monotonic()), self.presence.controller

    async def abort(self, reason: str) -> None:
        """The run ends for a reason that a restart would only repeat."""
        self.requests.abort(reason)

    # The run

    async def ended(self) -> tuple[str, str]:
        """(why it was stopped, why it was aborted); empty if it was not."""
        return self.requests.stop_reason, self.requests.abort_reason

    async def process(self) -> Process:
        """The process of this actor, on the driver's node."""
        return Process.this()

    async def _check_health(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)
            self.monitor.check(time.monotonic())
