"""All workers of a supervisor, and what is common to them."""

import os
import sys
from collections.abc import Iterable
from contextlib import suppress

from srft_ray.text import sanitize_text
from srft_ray.verify.owner import Owner
from srft_ray.verify.processes import ChildrenOf, descendants, kill_orphans
from srft_ray.verify.settings import Settings
from srft_ray.verify.verifier import Verify
from srft_ray.verify.worker_process import MAX_PROCESSES, WorkerProcess

PRINTED_CHARACTERS = 65_536  # of what the verifier prints; the rest is dropped


class Output:
    """What the verifier prints: it appears on this process's stderr, harmless and limited."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.left = PRINTED_CHARACTERS

    def drain(self) -> None:
        """Take what is there. The rest of too much is taken too: a full pipe would block the verifier."""
        os.set_blocking(self.writing, True)  # all workers share it, and one may have changed that
        with suppress(OSError):
            text = os.read(self.reading, PRINTED_CHARACTERS).decode(errors="replace")
            if self.left:
                shown = sanitize_text(text, self.left)
                self.left -= len(shown)
                end = "" if self.left else "\nThe verifier prints more, which is not shown.\n"
                print(shown, end=end, file=sys.stderr, flush=True)


class WorkerSet:
    """Starts, replaces, watches and ends the workers."""

    def __init__(self, owner: Owner, verifier: Verify, settings: Settings, namespaces: bool) -> None:
        self.owner = owner
        self.namespaces = namespaces
        self.output = Output()
        self.children = ChildrenOf(os.getpid())
        self.workers = [
            WorkerProcess(verifier, settings, namespaces, self.output.writing)
            for _ in range(settings.num_workers)
        ]

    def start(self) -> None:
        for worker in self.workers:
            self.replace(worker)

    def wait(self, busy: Iterable[WorkerProcess], until: float) -> set[int]:
        """As the owner's `wait`, on the files that the `busy` ones reply to."""
        replies = [worker.replies.fileno() for worker in busy]
        readable = self.owner.wait([self.output.reading, *replies], until)
        if self.output.reading in readable:
            self.output.drain()
        return readable

    def replace(self, worker: WorkerProcess) -> None:
        """Start the worker's process anew."""
        worker.kill()
        # With these files a verifier could speak in the supervisor's name.
        files = [self.owner.conn.fileno(), self.output.reading, *self.children.fds()]
        for other in self.workers:
            files += other.fds()
        worker.fork(files)

    def kill_orphans(self) -> None:
        """End what a finished item detached: this process inherited it. In namespaces there is nothing.

        Whose it was cannot be told: an item of another worker that uses what it detached just now fails too.
        """
        if not self.namespaces:
            kill_orphans(self.children, self._pids())

    def limit_orphans(self) -> None:
        """End what verifiers detached if all their processes together are too many."""
        if self.namespaces:
            return
        has_orphans = bool(self.children.read() - self._pids())
        if has_orphans and len(descendants(os.getpid())) > MAX_PROCESSES:
            self.kill_orphans()

    def close(self) -> None:
        """End all processes, then remove the files."""
        for worker in self.workers:
            worker.kill()
        self.kill_orphans()
        self.output.drain()

    def _pids(self) -> set[int]:
        return {worker.pid for worker in self.workers}
