"""Weights from the learners to all nodes of the engines at the same time, over a collective of torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from ray import ObjectRef
from ray.exceptions import RayError
from torch import Tensor

from srft_ray.config.rollout import RolloutSection
from srft_ray.sync.broadcast import SLICE_BYTES, BroadcastGroup, Deadline, make_group, send
from srft_ray.sync.listener import Listener, write_plan
from srft_ray.sync.node_copy import memory_id, remove_leftovers
from srft_ray.sync.pieces import Files, FileWriter, Piece, PieceBuffer, Place, Rank, cut
from srft_ray.sync.round_messages import Entry, Round, RoundKeys
from srft_ray.sync.staged_files import StagedFiles
from srft_ray.sync.transport import ObjectStoreTransport
from srft_ray.sync.versions import OutdatedLearners, WeightShare


class CollectiveTransport(ObjectStoreTransport):
    """The object store, and before engines are told of a version a round, in which the learners send it to
    the shared memory of the engines' nodes.

    A round only saves time: nodes that took no part in it, or in which it failed, load the version from the
    object store. From the second round on, learners write their shares straight into files of shared memory,
    which become the copy of their own node, and put them into the store when an engine asks for them.
    """

    def __init__(self, coordinator: Any, config: RolloutSection, generation: int = 0) -> None:
        super().__init__(coordinator, config, generation)
        self.root = Root(config.transport_backend) if generation else None
        self._agreed = ""  # name that all learners of the last round know; empty if it failed
        self._staged: dict[int, StagedFiles | None] = {}  # of the newest versions
        self._listener: Listener | None = None
        if not generation:
            self._listener = Listener(coordinator, config.transport_backend, self.deadline_s)
            self._listener.start()

    def _take(
        self, version: int, weights: Iterator[tuple[str, Tensor]], buffer: PieceBuffer, files: Files
    ) -> list[ObjectRef] | None:
        staged = self._staged[version] = self._open_files()
        if not staged:
            return super()._take(version, weights, buffer, files)
        pieces = cut(weights, self.rank, buffer, files, direct=True)
        for piece in pieces:
            try:
                staged.write(piece)
            except OSError:  # no room; the store writes to the disk what it has none for
                self._staged[version] = None
                put = self._put(chain(staged.pieces(self.piece_bytes), [piece], pieces))
                staged.close()
                return put
            del piece  # before the next tensor needs memory
        return None

    def _open_files(self) -> StagedFiles | None:
        """For the next version, if there is room and the learners know a name for them."""
        # Of the two versions before, the newer one is still offered.
        spare = self._staged.pop(min(self._staged)) if len(self._staged) > 1 else None
        try:
            return StagedFiles(self._agreed, self._headers, spare) if self._agreed else None
        except OSError:
            return None
        finally:
            if spare:
                spare.close()

    def _complete(self, share: WeightShare) -> WeightShare:
        if share.pieces is not None:
            return share
        pieces = self._staged[share.version].pieces(self.piece_bytes)
        return replace(share, pieces=[ray.put(piece) for piece in pieces])

    def close(self) -> None:
        super().close()
        for staged in filter(None, self._staged.values()):
            staged.close()
        if self._listener:
            self._listener.end()
        remove_leftovers()

    def _deliver(self, share: WeightShare) -> None:
        """Raises OutdatedLearners if other learners have taken the place of these."""
        if not self._headers:
            return
        deadline = Deadline(self.deadline_s)
        round: Round | None = None
        self._agreed = ""
        staged = self._staged[share.version]
        folder = staged.finish(self._headers) if staged else ""
        try:
            entry = self.root.entry(share, self.rank, folder)
            # All ranks are at the same point of the same step. The other half is for the bytes.
            asked = self.coordinator.enter_round.remote(self.generation, entry, self.deadline_s / 2)
            round = ray.get(asked, timeout=deadline.remaining_s)
            if round and round.members:
                if staged:
                    limit = min(self.piece_bytes, SLICE_BYTES)
                    plan, pieces = staged.plan(limit), staged.pieces(limit)
                else:
                    # One at a time: a store that is too small for all has written some of them to the disk.
                    plan = self._places
                    pieces = (ray.get(piece, timeout=deadline.remaining_s) for piece in share.pieces)
                self.root.send(round, self._headers, plan, pieces, deadline)
                self._agreed = round.name
        except OutdatedLearners:
            raise
        except (RuntimeError, OSError, RayError) as error:
            # Listeners that wait for this learner are told by the end of its store, not by the deadline.
            self.root.close()
            if round:
                problem = f"{type(error).__name__} at learner {self.rank.number}: {error}"
                self.coordinator.round_failed.remote(round.name, problem)


class Root:
    """A learner as the one that sends in its group, and writes for the engines of its own node."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self._host = ray.util.get_node_ip_address()
        self._store: dist.TCPStore | None = None
        self._group_name = ""
        self._group: BroadcastGroup | None = None
        self._rank = 0
        self._keys: tuple[str, ...] = ()  # of the newest round

    def entry(self, share: WeightShare, rank: Rank, staged: str) -> Entry:
        """What the coordinator is told before a round; `staged`: where the share is written already."""
        self._rank = rank.number
        if not self._store:
            self._store = dist.TCPStore(self._host, 0, is_master=True, wait_for_workers=False)
        return Entry(
            share.version,
            rank.number,
            rank.count,
            share.hashes,
            (self._host, self._store.port),
            memory_id(),
            self._group_name,
            share.headers,
            staged,
        )

    def send(
        self,
        round: Round,
        headers: Mapping[str, bytes],
        plan: Sequence[Sequence[Place]],
        pieces: Iterable[Piece],
        deadline: Deadline,
    ) -> None:
        """Sends the pieces to the members of the round; where one is on this node, writes them for it.

        Args:
            headers: of the files that they belong to.
            plan: the places of each piece.

        Raises:
            RuntimeError: a member died or failed.
            OSError: the deadline is over, or there is no room.
        """
        receivers = round.receivers(self._rank)
        keys = RoundKeys.of(round.name)
        for key in self._keys:
            self._store.delete_key(key)
        self._keys = keys
        self._store.set(keys.plan, write_plan(plan))
        if round.group != self._group_name:
            self._leave()
            if receivers:
                size = 1 + len(receivers)
                self._group = make_group(self.backend, self._store, round.group, 0, size, deadline)
            self._group_name = round.group
        folder = round.folder(self._rank)
        with ExitStack() as opened:
            writer = opened.enter_context(FileWriter(headers, Path(folder))) if folder else None
            for piece in pieces if writer or self._group else ():
                if writer:
                    writer.write(piece.places, piece.data)
                if self._group:
                    send(self._group, [piece], deadline)
        self._store.set(keys.written, b"")

    def close(self) -> None:
        """Leaves the group, and ends the store."""
        self._leave()
        self._store, self._keys = None, ()

    def _leave(self) -> None:
        if self._group:
            self._group.close()
        self._group, self._group_name = None, ""
