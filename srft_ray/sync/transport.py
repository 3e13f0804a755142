"""Weights from the learners to the engines: `publish` at the learners, `fetch` at an engine."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import ObjectRef
from ray.exceptions import ObjectLostError, OwnerDiedError, RayError
from torch import Tensor

from srft_ray.config.rollout import RolloutSection
from srft_ray.sync.fingerprint import FingerprintedWeights
from srft_ray.sync.node_copy import node_copy
from srft_ray.sync.pieces import Files, Piece, PieceBuffer, Place, Rank, cut, write_files
from srft_ray.sync.versions import OutdatedLearners, PolicyWeights, Publication, WeightShare

RETRY_INTERVAL_S = 0.5  # before a publication or a fetch that failed is tried again
REPUBLISH_INTERVAL_S = 0.5  # between checks whether the coordinator still has the newest version
REPUBLISHER = "republisher"  # name of the threads that check it
REPUBLISH_WAIT_S = 30.0  # that the coordinator may take for the answer that it has
PIECES_WAIT_S = 5.0  # that the coordinator may take to ask the learners for pieces that they keep


class NotStored(Exception):
    """The pieces of a version are not in the object store."""


class Replaced(Exception):
    """A version was replaced by a newer one before an engine had asked for its pieces."""

    def __init__(self, newest: PolicyWeights) -> None:
        super().__init__(f"policy version {newest.version} is newer")
        self.newest = newest


class WeightTransport(Protocol):
    def __init__(self, coordinator: Any, config: RolloutSection, generation: int = 0) -> None:
        """`generation`: of the start of the learners that publish through it; engines only fetch."""

    def publish(self, version: int, weights: Iterator[tuple[str, Tensor]], sender: bool) -> None:
        """Makes `weights` policy version `version`.

        Every rank calls it and must exhaust `weights`, which is a collective. One of them is the sender, for
        what one rank does for all.
        Version 0 comes without weights: engines start from the model itself.
        """

    def fetch(self, reload: Any, offered: PolicyWeights) -> int:
        """Calls `reload(folder)` with safetensors files of the weights that are offered, or of newer ones;
        returns their version.

        When `reload` has returned the files may be overwritten: it keeps no tensors that are part of them.
        """

    def close(self) -> None:
        """The learners leave, and nobody is to load what they published any more; or the engine ends."""


class ObjectStoreTransport:
    """Through Ray's object store, which spreads the pieces between nodes, and shared memory, where the
    engines of a node load them from one copy.

    Every rank puts an equal part of each tensor into the store of its node, and tells the coordinator where
    it is. If the coordinator dies, Ray starts it again without that knowledge: each rank tells it again by
    itself, while the learners wait for rollouts. Weights do not outlive their learners, whose next start
    publishes others.
    """

    def __init__(self, coordinator: Any, config: RolloutSection, generation: int = 0) -> None:
        self.coordinator = coordinator
        self.generation = generation
        self.rank = Rank.of_this_process()
        self.piece_bytes = config.transport_chunk_mb * 2**20
        self.timeout_s = config.timeout_s
        self.deadline_s = config.transport_deadline_s
        # What was published last, shared by the learner's thread and that of `_republish_loop`.
        self._share = WeightShare(0)
        self._lock = threading.Lock()
        self._buffer: PieceBuffer | None = None
        self._places: list[list[Place]] = []  # of each piece of the newest share
        self._headers: dict[str, bytes] = {}  # of the files that it belongs to
        self._republisher: threading.Thread | None = None
        self._closed = False

    def publish(self, version: int, weights: Iterator[tuple[str, Tensor]], sender: bool) -> None:
        share = self._make_share(version, weights, sender)
        self._deliver(share)
        with self._lock:
            self._share = share
            self._send()
        self._start_republisher()

    def _make_share(self, version: int, weights: Iterator[tuple[str, Tensor]], sender: bool) -> WeightShare:
        """This rank's share of the weights."""
        # What the learner gives is hashed already while it passes; what a subclass puts in its place is not.
        is_hashed = isinstance(weights, FingerprintedWeights)
        sent = weights if is_hashed else FingerprintedWeights(weights, self.rank)
        if self._buffer is None:
            self._buffer = PieceBuffer(self.piece_bytes)
        files = Files()
        pieces = self._take(version, sent, self._buffer, files)
        hashes, self._headers = sent.exhaust(), files.headers()
        return WeightShare(
            version,
            self.rank.number,
            hashes,
            pieces,
            self.rank.count if sender else 0,
            self._headers if sender else {},
        )

    def _take(
        self, version: int, weights: Iterator[tuple[str, Tensor]], buffer: PieceBuffer, files: Files
    ) -> list[ObjectRef] | None:
        """Takes this rank's part of each tensor; None if it keeps what it took until it is asked for."""
        return self._put(cut(weights, self.rank, buffer, files))

    def _put(self, pieces: Iterable[Piece]) -> list[ObjectRef]:
        """Puts pieces into the store."""
        put, self._places = [], []
        for piece in pieces:
            put.append(ray.put(piece))
            self._places.append(piece.places)
        return put

    def _complete(self, share: WeightShare) -> WeightShare:
        """A share with all its pieces."""
        return share

    def _deliver(self, share: WeightShare) -> None:
        """What is done with a share before engines are told of it: nothing, they fetch it."""

    def _send(self) -> None:
        """Gives the coordinator this rank's share; called with the lock.

        Raises:
            OutdatedLearners: other learners have taken the place of these.
            TimeoutError: the coordinator did not take it.
        """
        insist(self._send_once, f"policy version {self._share.version}", self.timeout_s)

    def _send_once(self) -> None:
        ray.get(self.coordinator.publish.remote(self.generation, self._share))

    def _start_republisher(self) -> None:
        if self._republisher is None:
            self._republisher = threading.Thread(target=self._republish_loop, name=REPUBLISHER, daemon=True)
            self._republisher.start()

    def _republish_loop(self) -> None:
        """Sends the share again whenever the coordinator has forgotten it, or lacks pieces of it."""
        while not self._closed:
            time.sleep(REPUBLISH_INTERVAL_S)
            try:
                # Hundreds of ranks that ask twice a second would keep the coordinator busy. Meanwhile the
                # lock is free for the next publication.
                if not self._is_known(REPUBLISH_WAIT_S):
                    with self._lock:
                        if not self._closed and not self._is_known():
                            self._share = self._complete(self._share)
                            self._send()
            except OutdatedLearners:
                return
            except (RayError, TimeoutError, OSError):
                continue  # it is tried again; the learner finds out by itself that no rollouts come

    def close(self) -> None:
        with self._lock:
            self._closed = True

    def _is_known(self, wait_s: float = 0.0) -> bool:
        """Whether the coordinator has the share; it may take `wait_s` to say that it has."""
        about = self.generation, self._share.version, self.rank.number
        return ray.get(self.coordinator.has_share.remote(*about, wait_s))

    def fetch(self, reload: Any, offered: PolicyWeights) -> int:
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                if offered.fingerprint:
                    with self._folder(offered.fingerprint) as folder:
                        reload(folder)
                    return offered.version
                problem = "it has not been published"
            except Replaced as replaced:
                offered = replaced.newest
                continue
            except (OwnerDiedError, ObjectLostError, NotStored) as error:
                problem = type(error).__name__
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"An engine could not fetch policy version {offered.version} within "
                    f"rollout.timeout_s={self.timeout_s:.0f} s: {problem}."
                )
            time.sleep(RETRY_INTERVAL_S)
            offered = self._newest().weights

    def _folder(self, fingerprint: str) -> AbstractContextManager[Path]:
        """Files with the tensors of that fingerprint, whoever has written them."""

        def write(folder: Path) -> None:
            version = self._version(fingerprint)
            write_files(version.headers, (ray.get(piece) for piece in version.pieces), folder)

        return node_copy(fingerprint, write, self.deadline_s)

    def _version(self, fingerprint: str) -> Publication:
        """The newest version with references to its pieces.

        Raises:
            Replaced: it is not the one of that fingerprint.
            NotStored: the learners, who keep its pieces, have not given them.
        """
        newest = self._newest()
        if newest.weights.fingerprint == fingerprint and newest.pieces is None:
            newest = ray.get(self.coordinator.pieces.remote(newest.weights.version, PIECES_WAIT_S))
        if newest.weights.fingerprint != fingerprint:
            raise Replaced(newest.weights)
        if newest.pieces is None:
            raise NotStored
        return newest

    def _newest(self) -> Publication:
        # One engine of a node asks: Ray counts who holds each reference, which takes long for many.
        return ray.get(self.coordinator.weights.remote())


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
