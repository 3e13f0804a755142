"""Weights from the learners to the engines. A transport has two ends: `publish` at the learners, `fetch` at an engine."""
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
from safetensors.torch import save as to_safetensors
from torch import Tensor

from srft_ray.config import RolloutSection
from srft_ray.errors import UserError
from srft_ray.plugins import load_object


class WeightTransport(Protocol):
    def __init__(self, gate: Any, config: RolloutSection) -> None: ...

    def publish(self, version: int, weights: Iterator[tuple[str, Tensor]], sender: bool) -> None:
        """Makes `weights` policy version `version`. Every rank calls it and must exhaust `weights`, which is a collective;
        one of them is the sender."""

    def fetch(self, reload: Any) -> int:
        """Calls `reload(folder)` with a folder of safetensors files of the newest version; returns that version."""


class ObjectStoreTransport:
    """Through Ray's object store, which also spreads the pieces between nodes, and shared memory. Works everywhere."""

    def __init__(self, gate: Any, config: RolloutSection) -> None:
        self.gate, self.chunk_bytes = gate, config.transport_chunk_mb * 2**20

    def publish(self, version: int, weights: Iterator[tuple[str, Tensor]], sender: bool) -> None:
        for chunk in _chunks(weights, self.chunk_bytes, keep=sender):
            ray.get(self.gate.put.remote(np.frombuffer(to_safetensors(chunk), dtype=np.uint8)))
        if sender:
            ray.get(self.gate.publish.remote(version))

    def fetch(self, reload: Any) -> int:
        version, refs = ray.get(self.gate.weights.remote())
        if not refs:
            raise RuntimeError(f"policy version {version} has not been published, so that an engine cannot fetch it")
        folder = Path(tempfile.mkdtemp(prefix="srft_ray_weights_", dir=_shared_memory()))
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


def _chunks(weights: Iterator[tuple[str, Tensor]], limit: int, keep: bool) -> Iterator[dict[str, Tensor]]:
    """Groups tensors on the CPU to about `limit` bytes. Tied tensors are written under each name: an engine that is not
    given its head keeps the old one without an error."""
    chunk: dict[str, Tensor] = {}
    size = 0
    for name, tensor in weights:
        if not keep:
            continue
        chunk[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += tensor.nbytes
        if size >= limit:
            yield chunk
            chunk, size = {}, 0
    if chunk:
        yield chunk


def _shared_memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
