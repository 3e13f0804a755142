"""Processes by number and start time: a number alone may be that of another process meanwhile."""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process of one machine.

    Attributes:
        pid: its number; 0 for none.
        started: its start time in clock ticks since the machine's boot.
    """

    pid: int = 0
    started: int = 0

    @classmethod
    def this(cls) -> "Process":
        return cls(os.getpid(), start_time(os.getpid()))

    @property
    def is_alive(self) -> bool:
        """Whether it runs on this machine."""
        return self.started != 0 and start_time(self.pid) == self.started

    def kill(self) -> bool:
        """Ends it by SIGKILL, which also reaches a process that is stopped; False if it has ended already."""
        if not self.is_alive:
            return False
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
            return True
        return False


def start_time(pid: int) -> int:
    """In clock ticks since boot; 0 if there is no such process."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19])
    return 0
