"""What the driver does beside waiting for Ray Train: it passes a stop on, and ends what does not end by itself."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from srft_ray.config.schema import Config
from srft_ray.observe.journal import record_event

HEARING_S = 10.0  # without learners, until a stop is not left to them


@contextmanager
def stopping(coordinator: Any) -> Iterator[None]:
    """While it lasts, SIGTERM asks the learners to leave with a checkpoint."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(1.0):  # again and again: the coordinator may die and forget
            with suppress(RayError):
                ray.get(coordinator.stop.remote("SIGTERM"))

    def stop(number: int, frame: object) -> None:
        threading.Thread(target=ask, daemon=True).start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        ended.set()
        signal.signal(signal.SIGTERM, before)


class RunSupervisor:
    """Kills what runs beside the driver and does not end by itself: Ray Train's controller, if there are no learners for too long,
    or none to hear that the run is to stop (it would wait for elastic ones for ever, and hear nothing); and a coordinator that hangs, on
    which everything waits, which Ray starts again."""

    def __init__(self, coordinator: Any, config: Config) -> None:
        self.coordinator, self.config, self.found, self.stopped, self._done = (
            coordinator,
            config,
            "",
            False,
            threading.Event(),
        )

    def __enter__(self) -> None:
        threading.Thread(target=self._look, daemon=True).start()

    def __exit__(self, *error: object) -> None:
        self._done.set()

    def _look(self) -> None:
        silence_s, absence_s, coordinator_pid = (
            self.config.rollout.stall_timeout_s,
            self.config.learner.start_timeout_s,
            0,
        )
        while not self._done.wait(2.0):
            try:
                (absent_s, controller_pid), (stop, _), coordinator_pid = ray.get(
                    [getattr(self.coordinator, name).remote() for name in ("absence", "ended", "pid")],
                    timeout=silence_s,
                )
            except GetTimeoutError:
                if self._kill(coordinator_pid):
                    record_event(
                        self.config.run_dir,
                        "coordinator",
                        "the actor that holds the weights said nothing for "
                        f"rollout.stall_timeout_s={silence_s:g} s: it is killed",
                    )
                coordinator_pid = 0
                continue
            except RayError:
                continue
            self.stopped = bool(stop) and absent_s > HEARING_S
            if self.stopped or absent_s > absence_s:
                self.found = (
                    f"No learners could be placed for learner.start_timeout_s={absence_s:.0f} s: add nodes, or lower "
                    "learner.num_workers, and run the same command again"
                )
                self._kill(controller_pid)

    def _kill(self, pid: int) -> bool:
        """A process on this node, whatever it does: one that is stopped or busy does not hear Ray's request to end."""
        if pid and not self._done.is_set():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return True
        return False
