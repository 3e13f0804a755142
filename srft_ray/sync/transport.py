"""Weights from the learners to the engines. A transport has two ends: `publish` at the learners, `fetch` at an engine."""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
from ray.exceptions import ObjectLostError, OwnerDiedError, RayError
from safetensors.torch import save as to_safetensors
from torch import Tensor

from srft_ray.config.training import RolloutSection
from srft_ray.errors import UserError
from srft_ray.plugins import load_object

POLL_INTERVAL_S = 0.5  # between tries
PREFIX = "srft_ray_weights_"  # then the process that loads


class WeightTransport(Protocol):
    def __init__(self, coordinator: Any, config: RolloutSection) -> None: ...

    def publish(self, version: int, weights: Iterator[tuple[str, Tensor]], sender: bool) -> None:
        """Makes `weights` policy version `version`. Every rank calls it and must exhaust `weights`, which is a collective;
        one of them is the sender. Version 0 comes without weights: engines start from the model itself."""

    def fetch(self, reload: Any) -> int:
        """Calls `reload(folder)` with a folder of safetensors files of the newest version; returns that version."""


class ObjectStoreTransport:
    """Through Ray's object store, which also spreads the pieces between nodes, and shared memory. Works everywhere.

    The coordinator's actor owns the pieces. If it dies, it comes back without them: the sender keeps a copy in its memory, and
    publishes it again by itself, while the learners wait for rollouts.
    """

    def __init__(self, coordinator: Any, config: RolloutSection) -> None:
        self.coordinator, self.chunk_bytes, self.timeout_s = (
            coordinator,
            config.transport_chunk_mb * 2**20,
            config.timeout_s,
        )
        self._version, self._chunks, self._lock = 0, list[np.ndarray](), threading.Lock()
        self._keeper: threading.Thread | None = None

    def publish(self, version: int, weights: Iterator[tuple[str, Tensor]], sender: bool) -> None:
        made = [
            np.frombuffer(to_safetensors(chunk), dtype=np.uint8)
            for chunk in chunks(weights, self.chunk_bytes, lambda _: sender)
        ]
        if sender:
            with self._lock:
                self._version, self._chunks = version, made
                self._send()
            self.keep()

    def keep(self) -> None:
        """From now on, publishes again whenever the coordinator has forgotten the version."""
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._watch, name="weights-supervisor", daemon=True)
            self._keeper.start()

    def _watch(self) -> None:
        while True:
            time.sleep(POLL_INTERVAL_S)
            with suppress(RayError), self._lock:
                if ray.get(self.coordinator.newest.remote()) < self._version:
                    self._send()

    def _send(self) -> None:
        """Until the coordinator has all pieces: it may die and come back between them."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                for number, chunk in enumerate(self._chunks):
                    ray.get(self.coordinator.put.remote(number, chunk))
                return ray.get(self.coordinator.publish.remote(self._version, len(self._chunks)))
            except (RuntimeError, RayError) as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"The coordinator did not take policy version {self._version} within rollout.timeout_s={self.timeout_s:.0f} s: "
                        f"{error}"
                    ) from error
                time.sleep(POLL_INTERVAL_S)

    def fetch(self, reload: Any) -> int:
        deadline = time.monotonic() + self.timeout_s
        while True:
            version, refs = ray.get(self.coordinator.weights.remote())
            try:
                if refs:
                    return self._load(version, refs, reload)
                why = "it has not been published"
            except (OwnerDiedError, ObjectLostError) as error:
                why = type(error).__name__
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"An engine could not fetch policy version {version} within rollout.timeout_s={self.timeout_s:.0f} s: {why}."
                )
            time.sleep(POLL_INTERVAL_S)

    def _load(self, version: int, refs: list[Any], reload: Any) -> int:
        _remove_left_over()
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}_", dir=_shared_memory()))
        try:
            for number, ref in enumerate(refs):
                ray.get(ref).tofile(folder / f"model-{number:05d}.safetensors")
            reload(folder)
        finally:
            shutil.rmtree(folder)
        return version


def transport_class(name: str) -> type[WeightTransport]:
    """The transport that rollout.transport names: `object_store`, or a class of one's own as `file.py:Class`; else UserError."""
    if name == "object_store":
        return ObjectStoreTransport
    if ":" not in name:
        raise UserError(f"rollout.transport is {name!r}: choose object_store or file.py:Class.")
    return load_object(name, "rollout.transport")


def chunks(
    tensors: Iterator[tuple[str, Tensor]], limit: int, keep: Callable[[int], bool]
) -> Iterator[dict[str, Tensor]]:
    """Groups tensors on the CPU to about `limit` bytes: those whose number this rank is to `keep`; it exhausts all, a collective.
    Tied tensors come under each name: an engine that is not given its head keeps the old one without an error."""
    chunk: dict[str, Tensor] = {}
    size = 0
    for number, (name, tensor) in enumerate(tensors):
        if not keep(number):
            continue
        chunk[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += tensor.nbytes
        if size >= limit:
            yield chunk
            chunk, size = {}, 0
    if chunk:
        yield chunk


def _shared_memory() -> str:
    return "/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()


def _remove_left_over() -> None:
    """Folders of engines on this machine that were killed while they loaded."""
    for folder in Path(_shared_memory()).glob(f"{PREFIX}*"):
        if not Path(f"/proc/{folder.name.removeprefix(PREFIX).split('_')[0]}").exists():
            shutil.rmtree(folder, ignore_errors=True)
