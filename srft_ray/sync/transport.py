"""Weights from the learners to the engines: `publish` at the learners, `fetch` at an engine."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
from ray.exceptions import ObjectLostError, OwnerDiedError, RayError
from safetensors.torch import save as to_safetensors
from torch import Tensor

from srft_ray.config.rollout import RolloutSection
from srft_ray.errors import UserError
from srft_ray.plugins import load_object
from srft_ray.sync.fingerprint import FingerprintedWeights
from srft_ray.sync.node_copy import node_copy
from srft_ray.sync.versions import OutdatedLearners, PolicyWeights

RETRY_INTERVAL_S = 0.5  # before a publication or a fetch that failed is tried again
REPUBLISH_INTERVAL_S = 0.5  # between checks whether the coordinator still has the newest version


class WeightTransport(Protocol):
    def __init__(self, coordinator: Any, config: RolloutSection, generation: int = 0) -> None:
        """`generation`: of the start of the learners that publish through it; engines only fetch."""

    def publish(self, version: int, weights: Iterator[tuple[str, Tensor]], sender: bool) -> None:
        """Makes `weights` policy version `version`.

        Every rank calls it and must exhaust `weights`, which is a collective; one of them is the sender.
        Version 0 comes without weights: engines start from the model itself.
        """

    def fetch(self, reload: Any) -> int:
        """Calls `reload(folder)` with safetensors files of the newest version; returns that version."""


class ObjectStoreTransport:
    """Through Ray's object store, which spreads the pieces between nodes, and shared memory, where the
    engines of a node load them from one copy.

    The coordinator's actor owns the pieces. If it dies, Ray starts it again without them: the sender keeps a
    copy in its memory and publishes it again by itself, while the learners wait for rollouts.
    """

    def __init__(self, coordinator: Any, config: RolloutSection, generation: int = 0) -> None:
        self.coordinator = coordinator
        self.generation = generation
        self.piece_bytes = config.transport_chunk_mb * 2**20
        self.timeout_s = config.timeout_s
        # What was published last, shared by the learner's thread and that of `_republish_loop`.
        self._weights = PolicyWeights(0)
        self._pieces: list[np.ndarray] = []
        self._lock = threading.Lock()
        self._republisher: threading.Thread | None = None

    def publish(self, version: int, weights: Iterator[tuple[str, Tensor]], sender: bool) -> None:
        # All ranks go through all tensors, because gathering one is a collective. All pieces are made before
        # the first is sent: the copies must be of this version, whenever they have to be sent again.
        # What the learner gives is hashed already while it passes; what a subclass puts in its place is not.
        is_hashed = isinstance(weights, FingerprintedWeights)
        sent = weights if is_hashed else FingerprintedWeights(weights, active=sender)
        pieces = [_serialized(chunk) for chunk in chunks(sent, self.piece_bytes, lambda _: sender)]
        if not sender:
            return
        with self._lock:
            self._weights = PolicyWeights(version, sent.exhaust() if pieces else "")
            self._pieces = pieces
            self._send()
        self._start_republisher()

    def _send(self) -> None:
        """Gives the coordinator all pieces, all of them again if it dies meanwhile; called with the lock.

        Raises:
            OutdatedLearners: other learners have taken the place of these.
            TimeoutError: the coordinator did not take them.
        """
        insist(self._send_once, f"policy version {self._weights.version}", self.timeout_s)

    def _send_once(self) -> None:
        # First the pieces, then the version that they are: engines never see a part of a version.
        for number, piece in enumerate(self._pieces):
            ray.get(self.coordinator.put_piece.remote(self.generation, number, piece))
        ray.get(self.coordinator.publish.remote(self.generation, self._weights, len(self._pieces)))

    def _start_republisher(self) -> None:
        if self._republisher is None:
            self._republisher = threading.Thread(target=self._republish_loop, name="republisher", daemon=True)
            self._republisher.start()

    def _republish_loop(self) -> None:
        """Publishes again whenever the coordinator has forgotten the version."""
        while True:
            time.sleep(REPUBLISH_INTERVAL_S)
            try:
                with self._lock:
                    if ray.get(self.coordinator.newest_version.remote()) < self._weights.version:
                        self._send()
            except OutdatedLearners:
                return
            except (RayError, TimeoutError):
                continue  # it is tried again; the learner finds out by itself that no rollouts come

    def fetch(self, reload: Any) -> int:
        deadline = time.monotonic() + self.timeout_s
        while True:
            weights, refs = ray.get(self.coordinator.weights.remote())
            try:
                if refs:
                    # Equal fingerprints are equal tensors, whoever has written them.
                    with node_copy(weights.fingerprint, partial(_write, refs)) as folder:
                        reload(folder)
                    return weights.version
                problem = "it has not been published"
            except (OwnerDiedError, ObjectLostError) as error:
                problem = type(error).__name__
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"An engine could not fetch policy version {weights.version} within "
                    f"rollout.timeout_s={self.timeout_s:.0f} s: {problem}."
                )
            time.sleep(RETRY_INTERVAL_S)


def insist(send: Callable[[], None], what: str, timeout_s: float) -> None:
    """Calls `send`, which gives the coordinator `what`, until it is taken; the coordinator may die.

    Raises:
        OutdatedLearners: other learners have taken the place of these.
        TimeoutError: the coordinator did not take it within rollout.timeout_s.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return send()
        except OutdatedLearners:
            raise
        except (RuntimeError, RayError) as error:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"The coordinator did not take {what} within rollout.timeout_s={timeout_s:.0f} s: {error}"
                ) from error
            time.sleep(RETRY_INTERVAL_S)


def _serialized(chunk: dict[str, Tensor]) -> np.ndarray:
    """The tensors as the bytes of a safetensors file, which Ray moves without a copy."""
    return np.frombuffer(to_safetensors(chunk), dtype=np.uint8)


def _write(refs: list[Any], folder: Path) -> None:
    """Writes the pieces as files into the folder."""
    for number, ref in enumerate(refs):
        ray.get(ref).tofile(folder / f"model-{number:05d}.safetensors")


def transport_class(name: str) -> type[WeightTransport]:
    """The transport that rollout.transport names: `object_store`, or a class as `file.py:Class`.

    Raises:
        UserError: neither of the two, or the class cannot be loaded.
    """
    if name == "object_store":
        return ObjectStoreTransport
    if ":" not in name:
        raise UserError(f"rollout.transport is {name!r}: choose object_store or file.py:Class.")
    return load_object(name, "rollout.transport")


def chunks(
    tensors: Iterator[tuple[str, Tensor]], limit: int, keep: Callable[[int], bool]
) -> Iterator[dict[str, Tensor]]:
    """Copies tensors to the CPU and gathers them to chunks of about `limit` bytes, by name.

    It goes through all tensors, which is a collective, and keeps those whose number this rank is to `keep`.
    Tied tensors come under each name: an engine that is not given its head keeps the old one without an
    error.
    """
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
