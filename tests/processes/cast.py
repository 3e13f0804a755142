"""Learners and engines as real processes that exchange weights over gloo; a coordinator in the place of
Ray's."""

import copy
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from srft_ray.config.rollout import RolloutSection
from srft_ray.sync import broadcast, collective, listener, node_copy, transport
from srft_ray.sync.collective import CollectiveTransport
from srft_ray.sync.fingerprint import FingerprintedWeights, folder_fingerprint
from srft_ray.sync.listener import Listener
from srft_ray.sync.pieces import Rank
from tests.processes.served import TIMEOUT_S, Forgetful, Handle, Manager, get

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.processes.cast"])
LARGE = 3_000_017  # float32 numbers of one tensor: 12 MB
OTHER = 4  # a version that has one tensor more than the others


def weights(version: int) -> dict[str, torch.Tensor]:
    """Tensors of several types, the same in every process."""
    generator = torch.Generator().manual_seed(version)
    return {
        "large": torch.randn(LARGE, generator=generator),
        **({"more": torch.randn(5, generator=generator)} if version == OTHER else {}),
        "odd": torch.randn(7, generator=generator).to(torch.bfloat16),
        "none": torch.zeros(0, 4),
        "flags": torch.tensor([True, False, True]),
        "matrix": torch.randn(300, 200, generator=generator).T,
    }


def set_scene(memory: Path) -> None:
    """Makes this process one that needs no Ray."""
    torch.set_num_threads(1)
    node_copy.SHARED_MEMORY = memory
    broadcast.SLICE_BYTES = 1_000_003
    address = SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1")
    ray = SimpleNamespace(put=copy.deepcopy, get=get, util=address)
    for module in (transport, collective, listener):
        module.ray = ray


def section(deadline_s: float) -> RolloutSection:
    return RolloutSection(
        transport_backend="gloo",
        transport_deadline_s=deadline_s,
        transport_chunk_mb=1,
        timeout_s=TIMEOUT_S,
    )


def learn(
    served: Any, memory: Path, rank: Rank, generation: int, deadline_s: float, tell: Connection
) -> None:
    """A learner, which publishes the versions that it is told and tells how long it took."""
    memory.mkdir(exist_ok=True)
    set_scene(memory)
    publisher = CollectiveTransport(Handle(served), section(deadline_s), generation)
    publisher.rank = rank
    while True:
        version, fails = tell.recv()
        publisher.coordinator = Forgetful(served) if fails else Handle(served)
        passed = FingerprintedWeights(weights(version).items(), rank)
        started = time.monotonic()
        publisher.publish(version, passed, sender=rank.number == 0)
        tell.send((time.monotonic() - started, passed.exhaust()))


def engine(served: Any, memory: Path, deadline_s: float, dies: str, tell: Connection) -> None:
    """An engine, which fetches when it is told to: (version, fingerprint, whether it used the store).

    `dies`: when it is killed or stopped in its first round, or that it raises; empty for never.
    """
    memory.mkdir(exist_ok=True)
    set_scene(memory)
    _arrange_death(dies)
    found: list[str] = []
    from_store: list[object] = []
    write = transport.write_files
    transport.write_files = lambda *about: from_store.append(about) or write(*about)
    fetcher = CollectiveTransport(Handle(served), section(deadline_s))
    while True:
        tell.recv()
        from_store.clear()
        found.clear()
        offered = transport.ray.get(fetcher.coordinator.admit.remote(0, 0, False, 0.0)).offered
        version = fetcher.fetch(lambda folder: found.append(folder_fingerprint(folder)), offered)
        tell.send((version, found[0], bool(from_store)))


def _arrange_death(dies: str) -> None:
    """`Listener._connect` is called when a listener is a member of a round, before anything is sent."""
    connect = Listener._connect
    number = signal.SIGSTOP if "stopped" in dies else signal.SIGKILL

    def connect_and_die(self: Listener, *about: Any) -> None:
        if dies == "raises":
            Listener._connect = connect
            raise KeyError("of a program that is wrong")
        if "before" in dies:
            os.kill(os.getpid(), number)
        connect(self, *about)
        os.kill(os.getpid(), number)

    if dies:
        Listener._connect = connect_and_die


class Actor:
    """A process that is told to do something, and answers."""

    def __init__(self, target: Any, *about: Any) -> None:
        self.told, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=target, args=(*about, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, what: object = None) -> None:
        self.told.send(what)

    def answer(self) -> Any:
        assert self.told.poll(TIMEOUT_S), "no answer"
        return self.told.recv()


class Cast:
    """`nodes` names the shared memory of each engine, `homes` that of each learner; by default learners are
    on a node of their own."""

    def __init__(
        self,
        served: Any,
        folder: Path,
        ranks: int,
        nodes: str,
        deadline_s: float,
        dies: dict[int, str],
        homes: str,
    ) -> None:
        self.served, self.folder, self.deadline_s = served, folder, deadline_s
        self.generation = served.call("restart", (1,)).generation
        self.engines: list[Actor] = []
        for number, node in enumerate(nodes):
            self.add_engine(node, dies.get(number, ""))
        places = [folder / home for home in homes] or [folder] * ranks
        about = self.generation, deadline_s
        self.learners = [
            Actor(learn, served, place, Rank(rank, ranks), *about) for rank, place in enumerate(places)
        ]

    def add_engine(self, node: str, dies: str = "") -> None:
        self.engines.append(Actor(engine, self.served, self.folder / node, self.deadline_s, dies))

    def wait_for_listeners(self, number: int) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while self.served.waiting() != number:
            assert time.monotonic() < deadline, self.served.waiting()
            time.sleep(0.02)

    def publish(self, version: int, fails: int | None = None) -> float:
        """The seconds of the slowest learner; the rank that `fails` enters the round and does not hear of
        it."""
        for rank, learner in enumerate(self.learners):
            learner.ask((version, rank == fails))
        return max(learner.answer()[0] for learner in self.learners)

    def fetch(self, *engines: int) -> list[tuple[int, str, bool]]:
        chosen = [self.engines[number] for number in engines or range(len(self.engines))]
        for one in chosen:
            one.ask()
        return [one.answer() for one in chosen]

    def first_fetch(self) -> tuple[float, tuple[int, str, bool]]:
        """All engines are told to fetch: the seconds until one has done so, and what it says."""
        started = time.monotonic()
        for one in self.engines:
            one.ask()
        [first, *_] = wait([one.told for one in self.engines], TIMEOUT_S) or [None]
        assert first, "no answer"
        return time.monotonic() - started, first.recv()


@contextmanager
def cast(
    folder: Path,
    ranks: int,
    nodes: str,
    deadline_s: float = 60.0,
    dies: dict[int, str] | None = None,
    homes: str = "",
) -> Iterator[Cast]:
    with Manager(ctx=CONTEXT) as manager:
        made = Cast(manager.Served(), folder, ranks, nodes, deadline_s, dies or {}, homes)
        try:
            yield made
        finally:
            for actor in (*made.engines, *made.learners):
                actor.process.kill()
                actor.process.join()
