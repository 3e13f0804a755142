"""Simulated engines: threads that ask the coordinator what `RolloutWorker` asks it, and sleep where vLLM
would sample."""

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from algorithms import Completion, Group
from srft_ray.commands.simulation.calls import CountedCoordinator
from srft_ray.commands.simulation.job import ENGINES_PER_NODE, SimulatedJob
from srft_ray.commands.simulation.nodes import Once, SimulatedTransport
from srft_ray.data.blocks import as_block
from srft_ray.rollout.loaded_version import EngineWeights, Held, LoadedVersion
from srft_ray.sync.admission import wait_for_admission
from srft_ray.sync.engine_deaths import EngineProcess
from srft_ray.sync.health import Heartbeat, send_heartbeats
from srft_ray.sync.versions import PolicyWeights

STEPS_PER_S = 50  # of vLLM, which an engine reports while it samples
STACK_BYTES = 2**18  # of a thread
GATHERING_S = 0.02  # in which a process gathers finished blocks that it sends together

Block = tuple[int, dict[str, Any]]


@dataclass(frozen=True)
class Admitted:
    """When a block of a step asked to start, and when it was admitted, in seconds since the epoch."""

    step: int
    needed: int
    asked_at: float
    admitted_at: float


class SimulatedEngine:
    """One engine with as many threads as Ray Data gives it blocks at a time."""

    def __init__(
        self,
        number: int,
        job: SimulatedJob,
        coordinator: Any,
        generation: int,
        out: "queue.Queue[Block]",
        transport: SimulatedTransport,
    ) -> None:
        """`out`: takes the finished blocks."""
        self.job = job
        self.coordinator = coordinator
        self.generation = generation
        self.out = out
        self.transport = transport
        self.loaded = LoadedVersion(EngineWeights(PolicyWeights(0)), self._load, job.rollout.timeout_s)
        self.finished = 0
        self.admitted: list[Admitted] = []
        # No process has this number, so that nothing would be killed for a heartbeat that comes late.
        node_id = ray.get_runtime_context().get_node_id()
        self.process = EngineProcess(f"{number:032x}", node_id, -1 - number, "")
        self.together = f"simulated_{generation}_{number // ENGINES_PER_NODE}"
        self._blocks = iter(job.of_engine(number))
        self._lock = threading.Lock()

    def start(self) -> None:
        ray.get(self.coordinator.engine_started.remote(self.process))
        self._in_thread(send_heartbeats, self.coordinator, self._heartbeat)
        for _ in range(self.job.in_flight):
            self._in_thread(self._work)

    def _in_thread(self, target: Any, *arguments: Any) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()

    def _work(self) -> None:
        while (block := self._next()) is not None:
            self.out.put((block, self._roll_out(block)))

    def _next(self) -> int | None:
        with self._lock:
            return next(self._blocks, None)

    def _roll_out(self, block: int) -> dict[str, Any]:
        segment, first = self.job.place(block)
        asked_at = time.time()
        timeout_s = self.job.rollout.timeout_s
        about = self.generation, segment.step, False, timeout_s, self.together
        found = wait_for_admission(self.coordinator, *about)
        self.admitted.append(Admitted(segment.step, found.needed, asked_at, time.time()))
        with self.loaded.hold(found.needed, found.offered, found.generation) as held:
            time.sleep(self.job.sampling_s(block))
        size = self.job.plan.block
        groups = [self._group(segment.step, first + place, held) for place in range(size)]
        self.finished += size
        return as_block(groups)

    def _group(self, step: int, group_id: int, held: Held) -> Group:
        rollout = Completion(0, "rollout", "", [0], [0.0])
        held.sign(rollout, ())
        group = Group(step, group_id, "", [], "", completions=[rollout], num_rollouts=1)
        group.engine = self.process.engine[-8:]
        held.prove(group)
        return group

    def _load(self, offered: PolicyWeights) -> EngineWeights:
        found: list[Path] = []
        version = self.transport.fetch(found.append, offered)
        return EngineWeights(PolicyWeights(version, found[0].name))

    def _heartbeat(self) -> Heartbeat:
        process = self.process
        busy = self.loaded.in_flight + self.loaded.loading
        steps = int(STEPS_PER_S * time.monotonic()) if busy else 0
        return Heartbeat(
            process.engine, process.node, process.pid, steps, busy, self.finished, self.generation
        )


class EngineHost:
    """A process with many simulated engines; run it as a Ray actor with several calls at a time."""

    def __init__(self, numbers: range, job: SimulatedJob, coordinator: Any, generation: int) -> None:
        threading.stack_size(STACK_BYTES)
        self.coordinator = CountedCoordinator(coordinator)
        self.out: queue.Queue[Block] = queue.Queue()
        of_process = Once()
        of_nodes = {number // ENGINES_PER_NODE: Once() for number in numbers}
        self.engines = []
        for number in numbers:
            of_node = of_nodes[number // ENGINES_PER_NODE]
            transport = SimulatedTransport(self.coordinator, job.rollout, of_node, of_process)
            about = number, job, self.coordinator, generation
            self.engines.append(SimulatedEngine(*about, self.out, transport))
        self.total = sum(len(job.of_engine(number)) for number in numbers)

    def run(self) -> Iterator[list[Block]]:
        """Starts the engines, and gives their blocks as they are finished."""
        for engine in self.engines:
            engine.start()
        given = 0
        while given < self.total:
            found = [self.out.get()]
            time.sleep(GATHERING_S)
            while not self.out.empty():
                found.append(self.out.get())
            given += len(found)
            yield found

    def counted(self) -> Counter[str]:
        """Calls of the coordinator so far, by method."""
        return self.coordinator.counted()

    def admitted(self) -> list[Admitted]:
        """All admissions so far."""
        return [one for engine in self.engines for one in engine.admitted]
