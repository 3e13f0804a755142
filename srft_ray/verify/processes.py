"""Which processes descend from one, and ending them all. Reads /proc."""

import os
import signal
import time
from contextlib import suppress


class ChildrenOf:
    """Reads the children of one process, at the price of two system calls."""

    def __init__(self, pid: int) -> None:
        self._tasks = os.open(f"/proc/{pid}/task", os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._main = os.open(f"{pid}/children", os.O_RDONLY, dir_fd=self._tasks)
        except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
            self._main = None
        self.pid = pid

    def fds(self) -> list[int]:
        return [fd for fd in (self._tasks, self._main) if fd is not None]

    def read(self) -> set[int]:
        """Pids of all children, zombies included. OSError where the process is gone."""
        if self._main is None:
            return set(descendants(self.pid))
        pids = os.pread(self._main, 65_536, 0)
        # A directory has two links and one for each folder in it, here one for each thread.
        if os.fstat(self._tasks).st_nlink > 3:
            for task in os.listdir(self._tasks):
                with (
                    suppress(FileNotFoundError),
                    open(f"/proc/{self.pid}/task/{task}/children", "rb") as file,
                ):
                    pids += file.read()
        return set(map(int, pids.split())) if pids else set()

    def close(self) -> None:
        for fd in self.fds():
            os.close(fd)


def descendants(root: int) -> list[int]:
    """Living processes below `root`, parents before their children."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
            # The name stands in brackets and may hold anything; after it: state and parent.
            state, parent = file.read().rpartition(b")")[2].split()[:2]
            if state not in (b"Z", b"X"):
                children.setdefault(int(parent), []).append(int(entry))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def kill_descendants(root: int, timeout_s: float = 5.0) -> None:
    """SIGKILL to all below `root`, again and again, as they may fork meanwhile, until none lives.

    What one of them detached counts only while `root` is its subreaper.
    """
    deadline = time.monotonic() + timeout_s
    while (pids := descendants(root)) and time.monotonic() < deadline:
        # Stopped first: while the first of many is killed, the others fork no more.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)


def kill_orphans(children: ChildrenOf, known: set[int]) -> None:
    """End and reap those children of this process that are not `known`: it inherited them as a subreaper."""
    # Layer by layer: the children of those that end here become children of this process.
    while orphans := children.read() - known:
        for pid in orphans:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in orphans:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
