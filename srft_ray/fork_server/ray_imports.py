"""Ray, imported before a fork: its forks must not make the same random numbers.

Ray's native library names tasks and objects by random numbers, from a source that begins when the first is
asked for. Processes forked after that would give the same names, and Ray would take their tasks for one.
"""

import importlib
import os
from collections.abc import Sequence
from typing import Any


class _ClassId:
    """Takes the place of the only names that Ray's modules make while they are imported, those of actor
    classes."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def from_random(self) -> Any:
        return self._original(os.urandom(self._original.size()))


def import_with_ray(modules: Sequence[str]) -> None:
    """Imports Ray and the modules.

    Raises:
        RuntimeError: one of them has made a random number by Ray's library.
    """
    import ray.actor

    original = ray.actor.ActorClassID
    ray.actor.ActorClassID = _ClassId(original)
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        ray.actor.ActorClassID = original
    if _name_in_fork() == _name_in_fork():
        raise RuntimeError("forks of this process would give the same names to tasks of Ray")


def _name_in_fork() -> bytes:
    """A name that a fork of this process makes."""
    source, target = os.pipe()
    pid = os.fork()
    if not pid:
        from ray import WorkerID

        os.write(target, WorkerID.from_random().binary())
        os._exit(0)
    os.close(target)
    with open(source, "rb") as file:
        name = file.read()
    os.waitpid(pid, 0)
    return name
