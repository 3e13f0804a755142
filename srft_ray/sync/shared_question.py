"""Processes of one node that ask the same at the same time ask once, and share the answer.

With 1,000 engines on 125 nodes the coordinator has 125 questions of a step to answer, instead of one for each
block.
"""

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from srft_ray.sync.node_copy import PREFIX, is_at, lock_if_free, shared_memory


def ask_together(name: str, ask: Callable[[], str]) -> str:
    """What `ask` gives, which is not empty; whoever asks under the same name meanwhile gets the same.

    A file in shared memory stands for one question. Its maker holds a lock on it while it asks, writes the
    answer into it, and removes its name, so that later questions are others. The system releases the lock
    however its holder ends: then one of those who waited asks.

    Raises:
        Exception: what `ask` raised in this process.
    """
    path = shared_memory() / f"{PREFIX}{os.getuid()}_{name}"
    answer = ""
    while not answer:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:  # shared memory is full: each asks for itself
            return ask()
        try:
            if not lock_if_free(descriptor):
                answer = _wait(descriptor)
            # Another process may have asked meanwhile, and removed the name.
            elif is_at(descriptor, path):
                answer = _ask(descriptor, path, ask)
        finally:
            os.close(descriptor)
    return answer


def _ask(descriptor: int, path: Path, ask: Callable[[], str]) -> str:
    try:
        answer = ask()
        with suppress(OSError):  # shared memory is full: those who wait find nothing, and ask
            os.ftruncate(descriptor, 0)  # of what one has left that was killed before it removed the name
            os.write(descriptor, answer.encode())
        return answer
    finally:
        path.unlink(missing_ok=True)


def _wait(descriptor: int) -> str:
    """The answer, when whoever asks has it; empty if it ended without one."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()
