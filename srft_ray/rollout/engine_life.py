"""Start and end of an engine's process, as the coordinator is told of them.

An engine that raises ends its process, as one that crashes does: Ray starts the actor again and Ray Data
repeats its blocks. An exception that left the actor would end the stream, and so count as a failure of the
learners.
"""

import os
import re
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from srft_ray.errors import RunFailed
from srft_ray.sync.engine_deaths import EngineDeath, EngineProcess

REPORT_TIMEOUT_S = 10.0
LOG_BYTES = 20_000  # of a log's end that are read
LOG_LINES = 4  # of them that are told
LINE_LENGTH = 160  # characters of each
# The first line is Python's fault handler's, the second one that of Ray's own handler.
FATAL = re.compile(r"Fatal Python error: (?P<name>[\w -]+)|\*\*\* (?P<signal>SIG[A-Z]+) received")
SIGNALS = {
    "Segmentation fault": "SIGSEGV",
    "Illegal instruction": "SIGILL",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Floating point exception": "SIGFPE",
    "Floating-point exception": "SIGFPE",
}
HINTS = {
    "SIGILL": "an instruction that this CPU lacks; if model.dtype is bfloat16 or float16, set "
    "rollout.dtype=float32",
}


class EngineLife:
    """Of the actor in whose process it is made.

    Attributes:
        finished: groups finished by this process; the actor counts them.
    """

    def __init__(self, coordinator: Any) -> None:
        """Raises RunFailed if engines died repeatedly at the same point, so that this one would die too."""
        context = ray.get_runtime_context()
        self.process = EngineProcess(
            context.get_actor_id(), context.get_node_id(), os.getpid(), _standard_error()
        )
        self.finished = 0
        self._coordinator = coordinator
        self._ending = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        before = ray.get(self._coordinator.engine_started.remote(self.process))
        if before is not None:
            # It died without a word. What it left can be read where it ran.
            text = _end_of(before.log) if before.node == self.process.node else ""
            death = EngineDeath(before, fatal_signal(text), excerpt(text), 0)
            ray.get(self._coordinator.engine_died.remote(death))
        problem = ray.get(self._coordinator.engine_problem.remote())
        if problem:
            raise RunFailed(problem)

    @contextmanager
    def ending_on_error(self) -> Iterator[None]:
        """An exception in the context is told to the coordinator and ends the process."""
        try:
            yield
        except Exception as error:
            self._end(error)

    def _end(self, error: Exception) -> None:
        # Of the threads that an engine's end reaches at the same time, one tells of it.
        with self._ending:
            traceback.print_exception(error)
            cause = " ".join(traceback.format_exception_only(error)[-1].split())
            text = "".join(traceback.format_exception(error))
            death = EngineDeath(self.process, _cut(cause, 2 * LINE_LENGTH), excerpt(text), self.finished)
            with suppress(RayError):  # without a coordinator there is nobody to tell
                ray.get(self._coordinator.engine_died.remote(death), timeout=REPORT_TIMEOUT_S)
            # Not by an exception: it would end the stream, and the other threads would go on.
            os._exit(1)


def fatal_signal(log: str) -> str:
    """The signal that a process died of, from its log; empty if the log names none."""
    found = FATAL.search(log)
    if found is None:
        return ""
    name = (found["name"] or "").strip()
    signal = found["signal"] or SIGNALS.get(name, "")
    return f"signal {signal} ({HINTS.get(signal, name)})" if signal else name


def excerpt(log: str) -> str:
    """The last lines of a log, or those that begin with a fatal signal, in one line."""
    found = FATAL.search(log)
    lines = [line.strip() for line in log[found.start() if found else 0 :].splitlines() if line.strip()]
    told = lines[:LOG_LINES] if found else lines[-LOG_LINES:]
    return " | ".join(_cut(line, LINE_LENGTH) for line in told)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _standard_error() -> str:
    """Path of the file that this process's standard error goes to; empty if it is no file."""
    path = os.readlink("/proc/self/fd/2")
    return path if Path(path).is_file() else ""


def _end_of(path: str) -> str:
    """The end of a log; empty if there is none any more."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
