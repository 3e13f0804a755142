"""The engines' side of the collective transport: a thread of an engine's actor, which receives versions for
its node while the engine samples."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from ray.exceptions import RayError

from srft_ray.sync.broadcast import CONNECT_TRIES, BroadcastGroup, Deadline, make_group, receive
from srft_ray.sync.node_copy import memory_id, node_copy
from srft_ray.sync.pieces import FileWriter, Place
from srft_ray.sync.round_messages import Invitation, Notice, Round, RoundKeys, Waiting

# That the coordinator may hold a question of a listener. An engine that ends waits for the answer, and Ray
# kills it after 5 s.
LISTEN_S = 3.0
RETRY_INTERVAL_S = 0.5  # before it is asked again after an error
# Learners whose shares are received at the same time. Operations of several NCCL groups on one GPU could wait
# for each other if nodes started them in different orders.
LEARNERS_AT_A_TIME = {"gloo": 8, "nccl": 1}


class NotMember(Exception):
    """A round went on without this listener."""


class Listener:
    """Keeps the newest copy of the weights that it received, for the engines of its node to load."""

    def __init__(self, coordinator: Any, backend: str, deadline_s: float) -> None:
        self.name = uuid.uuid4().hex
        self.coordinator = coordinator
        self.backend = backend
        self.deadline_s = deadline_s
        self._lock = threading.Lock()  # of what is held
        self._held = ExitStack()
        self._holds = ""
        self._ended = False
        self._group_name = ""
        self._groups: list[BroadcastGroup | None] = []  # of each learner; none with those of its own node
        self._stores: list[dist.Store] = []

    def start(self) -> None:
        threading.Thread(target=self._listen, name="weight-listener", daemon=True).start()

    def _listen(self) -> None:
        try:
            while not self._ended:
                try:
                    self.step()
                except RayError:
                    time.sleep(RETRY_INTERVAL_S)  # Ray starts the coordinator again
        finally:
            # Without the thread nobody would let the copy go.
            self._release()
            self.close()

    def step(self) -> None:
        """Waits for a notice of the coordinator for some seconds, and does what it says."""
        waiting = Waiting(self.name, memory_id(), self._holds)
        notice: Notice = ray.get(self.coordinator.next_round.remote(waiting, LISTEN_S))
        if notice.released:
            self._release()
        if notice.invitation:
            self._take_part(notice.invitation)

    def end(self) -> None:
        """The engine ends: the copy is let go, and one that is being received is not kept."""
        self._ended = True
        self._release()

    def _release(self) -> None:
        with self._lock:
            self._holds = ""
            self._held.close()

    def _take_part(self, invitation: Invitation) -> None:
        """Receives a version. If that fails, whoever wants it takes it from the object store."""
        write = partial(self._receive, invitation, Deadline(self.deadline_s))
        try:
            with ExitStack() as copy:
                copy.enter_context(node_copy(invitation.fingerprint, write, self.deadline_s))
                with self._lock:
                    if not self._ended:
                        self._held, self._holds = copy.pop_all(), invitation.fingerprint
        except NotMember:
            pass
        except Exception as error:  # whatever it is costs only this round, and the coordinator reports it
            # The others learn of it by the end of the connections, and not only by the deadline.
            self.close()
            problem = f"{type(error).__name__} at a listener: {error}"
            ray.get(self.coordinator.round_failed.remote(invitation.round, problem))

    def _receive(self, invitation: Invitation, deadline: Deadline, folder: Path) -> None:
        """Raises NotMember, or RuntimeError, OSError or RayError if a learner, a listener or the coordinator
        dies or the deadline is over."""
        about = invitation.round, self.name, self._group_name, str(folder)
        joined = self.coordinator.join_round.remote(*about)
        round: Round | None = ray.get(joined, timeout=deadline.remaining_s)
        if round is None:
            raise NotMember
        self._connect(round, deadline)
        if staged := round.staged_at(memory_id()):
            for file in invitation.headers:
                os.link(Path(staged) / file, folder / file)
        with (
            FileWriter(invitation.headers, folder) as writer,
            ThreadPoolExecutor(LEARNERS_AT_A_TIME[self.backend]) as pool,
        ):
            receive_share = partial(self._receive_share, RoundKeys.of(round.name), writer, deadline)
            # Whatever a thread raises is raised here.
            list(pool.map(receive_share, range(len(self._groups))))

    def _receive_share(self, keys: RoundKeys, writer: FileWriter, deadline: Deadline, rank: int) -> None:
        """What one learner sends in the round, or writes itself."""
        store, group = self._stores[rank], self._groups[rank]
        store.set_timeout(deadline.remaining)
        if group is None:
            store.get(keys.written)
            return
        plan = read_plan(store.get(keys.plan))
        for places, data in receive(group, plan, deadline):
            writer.write(places, data)

    def _connect(self, round: Round, deadline: Deadline) -> None:
        """Makes the groups of the round unless they are those of the round before."""
        if round.group == self._group_name:
            return
        self.close()
        for learner, (host, port) in enumerate(round.addresses):
            # That of torch tries again and again where nobody listens any more: even when a learner leaves
            # between the two it is to end soon.
            socket.create_connection((host, port), deadline.remaining_s).close()
            timeout = deadline.remaining / CONNECT_TRIES
            store = dist.TCPStore(host, port, is_master=False, timeout=timeout)
            self._stores.append(store)
            receivers = round.receivers(learner)
            group: BroadcastGroup | None = None
            if self.name in receivers:
                rank, size = 1 + receivers.index(self.name), 1 + len(receivers)
                group = make_group(self.backend, store, round.group, rank, size, deadline)
            self._groups.append(group)
        self._group_name = round.group

    def close(self) -> None:
        """Leaves the groups."""
        for group in filter(None, self._groups):
            group.close()
        self._group_name, self._groups, self._stores = "", [], []


def write_plan(plan: Sequence[Sequence[Place]]) -> str:
    """The places of the pieces that a learner is about to send."""
    return json.dumps([[(place.file, place.start, place.size) for place in places] for places in plan])


def read_plan(text: bytes) -> list[list[Place]]:
    return [[Place(*place) for place in places] for places in json.loads(text)]
