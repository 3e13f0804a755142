"""What the driver does while Ray Train runs: it passes a stop on, and ends what does not end by itself."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from srft_ray.config.rollout import RolloutSection
from srft_ray.errors import RunFailed, cause
from srft_ray.sync.processes import Process

POLL_INTERVAL_S = 2.0
STOP_TIMEOUT_S = 10.0  # without learners, until a stop is not left to them


@contextmanager
def stopping(coordinator: Any) -> Iterator[Callable[[str], None]]:
    """Gives a function that asks the learners to leave with a checkpoint, and says why; SIGTERM does it
    too."""
    ended = threading.Event()

    def ask(why: str) -> None:
        while not ended.wait(1.0):  # again and again: the coordinator may die and forget
            with suppress(RayError):
                ray.get(coordinator.request_stop.remote(why))

    def stop(why: str) -> None:
        threading.Thread(target=ask, args=(why,), daemon=True).start()

    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        before = signal.signal(signal.SIGTERM, lambda number, frame: stop("SIGTERM"))
    try:
        yield stop
    finally:
        ended.set()
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def wait_for_rollouts(task: ray.ObjectRef, coordinator: Any, rollout: RolloutSection) -> Any:
    """The result of a task that takes rollouts from engines, without learners that would wait for them.

    Raises:
        RunFailed: the task failed, engines die again and again, or none has finished a group for
            rollout.timeout_s.
    """
    finished = 0.0
    progress_at = time.monotonic()
    try:
        while not ray.wait([task], timeout=POLL_INTERVAL_S)[0]:
            questions = [coordinator.engine_problem.remote(), coordinator.engine_metrics.remote(0)]
            problem, engines = ray.get(questions, timeout=rollout.stall_timeout_s)
            if engines["queue/depth"] != finished:
                finished = engines["queue/depth"]
                progress_at = time.monotonic()
            if not problem and time.monotonic() - progress_at > rollout.timeout_s:
                problem = (
                    f"No engine has finished a group for rollout.timeout_s={rollout.timeout_s:g} s. The "
                    "engines are stuck, cannot be placed, or need longer"
                )
            if problem:
                ray.cancel(task, force=True)
                raise RunFailed(problem)
        return ray.get(task)
    except RayError as error:
        raise RunFailed(cause(error)) from error


class RunSupervisor:
    """Kills processes beside the driver that do not end by themselves.

    These are Ray Train's controller, if there are no learners for too long or none to hear that the run is to
    stop (it would wait for elastic learners for ever), and a coordinator that hangs, which Ray starts again.

    Attributes:
        problem: why the controller was killed; empty if it was not.
        stopped: whether it was killed because the run is to stop.
    """

    def __init__(
        self, coordinator: Any, report: Callable[[str, str], None], silence_s: float, absence_s: float
    ) -> None:
        """
        Args:
            report: is told (kind, message) of the coordinator's end.
            silence_s: of the coordinator (rollout.stall_timeout_s).
            absence_s: of learners (learner.start_timeout_s).
        """
        self.coordinator = coordinator
        self.report = report
        self.silence_s = silence_s
        self.absence_s = absence_s
        self.problem = ""
        self.stopped = False
        self._coordinator = Process()
        self._done = threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._watch, name="run-supervisor", daemon=True).start()

    def __exit__(self, *error: object) -> None:
        self._done.set()

    def engine_problem(self) -> str:
        """Why no engine is to be started any more; empty if nothing is known of a reason."""
        with suppress(RayError):
            return ray.get(self.coordinator.engine_problem.remote(), timeout=self.silence_s)
        return ""

    def _watch(self) -> None:
        while not self._done.wait(POLL_INTERVAL_S):
            try:
                self._check()
            except GetTimeoutError:
                self._end_coordinator()
            except RayError:
                continue  # the coordinator died, and Ray starts it again

    def _check(self) -> None:
        """Asks the coordinator for its process, for the absence of learners, and for a stop."""
        names = ("learners_absent", "ended", "engine_problem", "process")
        questions = [getattr(self.coordinator, name).remote() for name in names]
        absence, ended, engine_problem, self._coordinator = ray.get(questions, timeout=self.silence_s)
        self.decide(*absence, stop=ended[0], engine_problem=engine_problem)

    def decide(self, absent_s: float, controller: Process, stop: str, engine_problem: str) -> None:
        """Kills Ray Train's controller if it waits for what will not come.

        Args:
            absent_s: seconds without learners.
            stop: who asked the run to stop; empty if nobody did.
            engine_problem: why no engine is to be started any more; empty while there is no reason.
        """
        if engine_problem:
            # The learners wait for rollouts that will not come, and would be started again if they failed.
            self.problem = engine_problem
            self._kill(controller)
        elif stop and absent_s > STOP_TIMEOUT_S:
            # Only now is what Ray Train raises the stop's doing. An error of its own is not.
            self.stopped = self._kill(controller) or self.stopped
        elif absent_s > self.absence_s:
            self.problem = (
                f"No learners could be placed for learner.start_timeout_s={self.absence_s:.0f} s: add nodes, "
                "or lower learner.num_workers, and run the same command again"
            )
            self._kill(controller)

    def _end_coordinator(self) -> None:
        if self._kill(self._coordinator):
            self.report(
                "coordinator",
                "the actor that knows the published versions said nothing for "
                f"rollout.stall_timeout_s={self.silence_s:g} s: it is killed",
            )
        self._coordinator = Process()  # of the next one it is not known yet

    def _kill(self, process: Process) -> bool:
        """Kills a process on this node by a signal: one that is stopped or busy does not answer Ray's request
        to end."""
        return not self._done.is_set() and process.kill()
