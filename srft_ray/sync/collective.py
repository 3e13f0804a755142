"""Weights from the learners to all nodes of the engines at the same time, over a collective of torch."""

from collections.abc import Iterable, Sequence
from typing import Any

import ray
import torch.distributed as dist
from ray.exceptions import RayError

from srft_ray.config.rollout import RolloutSection
from srft_ray.sync.broadcast import BroadcastGroup, Deadline, make_group, send
from srft_ray.sync.listener import Listener, write_plan
from srft_ray.sync.pieces import Piece, Place, Rank
from srft_ray.sync.rounds import Entry, Round
from srft_ray.sync.transport import ObjectStoreTransport
from srft_ray.sync.versions import OutdatedLearners, WeightShare


class CollectiveTransport(ObjectStoreTransport):
    """The object store, and before engines are told of a version a round, in which the learners send it to
    the shared memory of the engines' nodes.

    A round only saves time. Every version is in the object store too: nodes that took no part in the round,
    or in which it failed, load it from there.
    """

    def __init__(self, coordinator: Any, config: RolloutSection, generation: int = 0) -> None:
        super().__init__(coordinator, config, generation)
        self.root = Root(config.transport_backend) if generation else None
        if not generation:
            Listener(coordinator, config.transport_backend, self.deadline_s).start()

    def _deliver(self, share: WeightShare) -> None:
        """Raises OutdatedLearners if other learners have taken the place of these."""
        if not share.pieces:
            return
        deadline = Deadline(self.deadline_s)
        round: Round | None = None
        try:
            entry = self.root.entry(share, self.rank)
            # All ranks are at the same point of the same step. The other half is for the bytes.
            asked = self.coordinator.enter_round.remote(self.generation, entry, self.deadline_s / 2)
            round = ray.get(asked, timeout=deadline.remaining_s)
            if round and round.members:
                # One at a time: a store that is too small for all has written some of them to the disk.
                pieces = (ray.get(piece, timeout=deadline.remaining_s) for piece in share.pieces)
                self.root.send(round, self._places, pieces, deadline)
        except OutdatedLearners:
            raise
        except (RuntimeError, OSError, RayError) as error:
            # Listeners that wait for this learner are told by the end of its store, not by the deadline.
            self.root.close()
            if round:
                problem = f"{type(error).__name__} at learner {self.rank.number}: {error}"
                self.coordinator.round_failed.remote(round.name, problem)


class Root:
    """A learner as the one that sends in its group."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self._host = ray.util.get_node_ip_address()
        self._store: dist.TCPStore | None = None
        self._group_name = ""
        self._group: BroadcastGroup | None = None
        self._plan = ""  # key of the newest one

    def entry(self, share: WeightShare, rank: Rank) -> Entry:
        """What the coordinator is told before a round."""
        if not self._store:
            self._store = dist.TCPStore(self._host, 0, is_master=True, wait_for_workers=False)
        return Entry(
            share.version,
            rank.number,
            rank.count,
            share.hashes,
            (self._host, self._store.port),
            self._group_name,
            share.headers,
        )

    def send(
        self, round: Round, plan: Sequence[Sequence[Place]], pieces: Iterable[Piece], deadline: Deadline
    ) -> None:
        """Sends the pieces to the members of the round.

        Args:
            plan: the places of each piece.

        Raises:
            RuntimeError: a member died.
            OSError: the deadline is over.
        """
        if self._plan:
            self._store.delete_key(self._plan)
        self._plan = round.name
        self._store.set(self._plan, write_plan(plan))
        if round.group != self._group_name:
            self._leave()
            size = 1 + len(round.members)
            self._group = make_group(self.backend, self._store, round.group, 0, size, deadline)
            self._group_name = round.group
        send(self._group, pieces, deadline)

    def close(self) -> None:
        """Leaves the group, and ends the store."""
        self._leave()
        self._store, self._plan = None, ""

    def _leave(self) -> None:
        if self._group:
            self._group.close()
        self._group, self._group_name = None, ""
