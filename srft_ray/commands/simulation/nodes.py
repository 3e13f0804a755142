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


class ProcessStore:
    """Reads the pieces of a version once for all simulated nodes of a process.

    Each node reads them from Ray's object store in a run, but there are as many machines that do so.
    """

    def __init__(self) -> None:
        self._newest = ("", "")  # the fingerprint that was published, and that of the tensors
        self._lock = threading.Lock()

    def fingerprint(self, version: Publication) -> str:
        """Of the version's tensors, as they are in the files that the pieces make."""
        published = version.weights.fingerprint
        with self._lock:
            if self._newest[0] != published:
                with tempfile.TemporaryDirectory() as folder:
                    write_files(version.headers, map(ray.get, version.pieces), Path(folder))
                    self._newest = published, folder_fingerprint(Path(folder))
            return self._newest[1]


class SimulatedNode:
    """Its engines wait for each other on a lock. Engines that are processes look every few milliseconds
    whether another one has written, which a thousand of them on one machine could not.
    """

    def __init__(self, store: ProcessStore) -> None:
        self._store = store
        self._newest = ("", "")  # as that of the store
        self._lock = threading.Lock()

    def fingerprint(self, published: str, ask: Callable[[], Publication]) -> str:
        """Of the tensors of the version that was published as `published`; the first engine asks for it."""
        with self._lock:
            if self._newest[0] != published:
                self._newest = published, self._store.fingerprint(ask())
            return self._newest[1]


class SimulatedTransport(ObjectStoreTransport):
    """Asks the coordinator what engines ask it. The name of the folder that it gives is the fingerprint of
    the tensors; there is no folder.
    """

    def __init__(self, coordinator: Any, config: RolloutSection, node: SimulatedNode) -> None:
        super().__init__(coordinator, config)
        self._node = node

    @contextmanager
    def _folder(self, fingerprint: str) -> Iterator[Path]:
        yield Path(self._node.fingerprint(fingerprint, lambda: self._version(fingerprint)))
