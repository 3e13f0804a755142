"""Simulated nodes, each with a copy of the weights for its engines, which are threads of one process."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from srft_ray.config.rollout import RolloutSection
from srft_ray.sync.fingerprint import folder_fingerprint
from srft_ray.sync.pieces import write_files
from srft_ray.sync.transport import ObjectStoreTransport
from srft_ray.sync.versions import Publication


class Once:
    """The newest of some values, made by the first thread that asks for it; others wait for that thread.

    Engines that are processes look every few milliseconds whether another one has written, which a thousand
    of them on one machine could not.
    """

    def __init__(self) -> None:
        self._key = self._value = ""
        self._lock = threading.Lock()

    def get(self, key: str, make: Callable[[], str]) -> str:
        with self._lock:
            if self._key != key:
                self._value, self._key = make(), key
            return self._value


class SimulatedTransport(ObjectStoreTransport):
    """Asks the coordinator what engines ask it. The name of the folder that it gives is the fingerprint of
    the tensors; there is no folder.

    One engine of a node asks for the pieces of a version. They are read once for all nodes of a process: in a
    run each node reads them from Ray's object store, but there are as many machines that do so.
    """

    def __init__(self, coordinator: Any, config: RolloutSection, of_node: Once, of_process: Once) -> None:
        super().__init__(coordinator, config)
        self._of_node = of_node
        self._of_process = of_process

    @contextmanager
    def _folder(self, fingerprint: str) -> Iterator[Path]:
        yield Path(self._of_node.get(fingerprint, lambda: self._ask(fingerprint)))

    def _ask(self, fingerprint: str) -> str:
        version = self._version(fingerprint)
        return self._of_process.get(fingerprint, lambda: _fingerprint_of_files(version))


def _fingerprint_of_files(version: Publication) -> str:
    """Of the version's tensors, as they are in the files that the pieces make."""
    with tempfile.TemporaryDirectory() as folder:
        write_files(version.headers, map(ray.get, version.pieces), Path(folder))
        return folder_fingerprint(Path(folder))
