"""Runs one simulated job against a real coordinator, and measures the coordinator."""

import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray

from srft_ray.commands.simulation.calls import CountedCoordinator
from srft_ray.commands.simulation.engines import Admitted, EngineHost
from srft_ray.commands.simulation.job import SimulatedJob, hosts
from srft_ray.commands.simulation.learners import SimulatedLearners, StepRecord
from srft_ray.sync.health import Heartbeat

WARM_UP = 2  # steps in which engines start and threads settle; they are not counted
PROBE_INTERVAL_S = 0.2
CALLS_AT_A_TIME = 4  # of a process with engines: its stream of blocks, and questions
MB = 1e6


@dataclass
class Latencies:
    """Seconds from a question to its answer, by what was asked."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - started)

    def add(self, name: str, seconds: float) -> None:
        self.seconds.setdefault(name, []).append(seconds)

    def figures(self) -> dict[str, dict[str, float]]:
        """The median and the 99th percentile of each, in milliseconds."""
        return {name: _percentiles(found) for name, found in self.seconds.items() if found}


@dataclass(frozen=True)
class Observation:
    """What the coordinator's process has used at the end of a step.

    Attributes:
        at: seconds since the epoch.
        cpu_s: of user and system together, since the process started.
        memory_mb: memory that no other process shares.
        calls: made by the learners so far, by method.
        host_calls: those of each process with engines, still on their way.
    """

    step: int
    at: float
    cpu_s: float
    memory_mb: float
    calls: Counter[str]
    host_calls: list[ray.ObjectRef]

    def all_calls(self) -> Counter[str]:
        total = Counter(self.calls)
        for counted in ray.get(self.host_calls):
            total.update(counted)
        return total


@dataclass(frozen=True)
class SimulatedRun:
    """What a simulated job has shown, without the first steps and the last one, which publishes nothing.

    Attributes:
        step_s: median seconds of a step.
        overhead_s: of them, those beyond the stated times of generation and update.
        core_share: of one core that the coordinator's process used.
        calls_per_s: at the coordinator, by method.
        latencies_ms: median and 99th percentile of answers, by what was asked.
        memory_mb: of the coordinator after each step.
    """

    job: SimulatedJob
    step_s: float
    overhead_s: float
    core_share: float
    calls_per_s: dict[str, float]
    latencies_ms: dict[str, dict[str, float]]
    memory_mb: list[float]


class Observer:
    """Looks at the coordinator's process after each step, and asks it something in between."""

    def __init__(
        self, coordinator: Any, counted: CountedCoordinator, engine_hosts: list[Any], generation: int
    ) -> None:
        self.coordinator = coordinator
        self.generation = generation
        self.process = psutil.Process(ray.get(coordinator.process.remote()).pid)
        self.counted = counted
        self.engine_hosts = engine_hosts
        self.observations: list[Observation] = []
        self.latencies = Latencies()

    def look(self) -> None:
        """Called after each step."""
        used = self.process.cpu_times()
        self.observations.append(
            Observation(
                len(self.observations),
                time.time(),
                used.user + used.system,
                self.process.memory_full_info().uss / MB,
                self.counted.counted(),
                [host.counted.remote() for host in self.engine_hosts],
            )
        )

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Measures answers of the coordinator for the length of the context."""
        ended = threading.Event()
        thread = threading.Thread(target=self._probe, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _probe(self, ended: threading.Event) -> None:
        # Of a start of learners that is long over: it is received, and changes nothing.
        beat = Heartbeat("probe", "", 0, 0, 0, 0, -1)
        while not ended.wait(PROBE_INTERVAL_S):
            with self.latencies.timed("admit"):
                ray.get(self.coordinator.admit.remote(self.generation, 0))
            with self.latencies.timed("heartbeat"):
                ray.get(self.coordinator.heartbeat.remote(beat))


def run_simulated(job: SimulatedJob, coordinator: Any) -> SimulatedRun:
    """Runs all steps of a job.

    Args:
        coordinator: a new coordinator's actor on this machine.

    Raises:
        ProvenanceError: a block was sampled by a version that it must not be sampled by.
    """
    start = ray.get(coordinator.restart.remote(0))
    host = ray.remote(EngineHost).options(num_cpus=0, max_concurrency=CALLS_AT_A_TIME)
    engine_hosts = [
        host.remote(numbers, job, coordinator, start.generation) for numbers in hosts(job.setting.engines)
    ]
    counted = CountedCoordinator(coordinator)
    learners = SimulatedLearners(job, counted, start.generation)
    observer = Observer(coordinator, counted, engine_hosts, start.generation)
    learners.after_step = observer.look
    ray.get([one.counted.remote() for one in engine_hosts])  # until all processes have started
    with observer.probing():
        for one in engine_hosts:
            blocks = one.run.options(num_returns="streaming").remote()
            threading.Thread(target=_deliver, args=(blocks, learners), daemon=True).start()
        learners.run()
    admitted = [found for one in engine_hosts for found in ray.get(one.admitted.remote())]
    for one in engine_hosts:
        ray.kill(one)
    learners.end()
    ray.kill(coordinator)
    return summary(job, learners.records, observer, admitted)


def _deliver(blocks: Iterator[ray.ObjectRef], learners: SimulatedLearners) -> None:
    for found in blocks:
        learners.receive(ray.get(found))


def summary(
    job: SimulatedJob, records: list[StepRecord], observer: Observer, admitted: list[Admitted]
) -> SimulatedRun:
    """The figures of a run that has ended."""
    counted = records[WARM_UP:-1]
    first, last = observer.observations[WARM_UP - 1], observer.observations[-2]
    seconds = last.at - first.at
    calls = last.all_calls() - first.all_calls()
    latencies = observer.latencies
    for record in counted:
        latencies.add("publish", record.publish_s)
    for delay_s in admission_delays(records, admitted):
        latencies.add("admission after publication", delay_s)
    step_s = statistics.median(record.step_s for record in counted)
    return SimulatedRun(
        job,
        step_s,
        step_s - job.stated_s,
        (last.cpu_s - first.cpu_s) / seconds,
        {name: number / seconds for name, number in sorted(calls.items())},
        latencies.figures(),
        [observation.memory_mb for observation in observer.observations],
    )


def admission_delays(records: list[StepRecord], admitted: list[Admitted]) -> list[float]:
    """How long blocks waited after the version that admits them was published, in seconds.

    Only those that had asked before are counted, after the warm-up.
    """
    published = {record.step + 1: record.published_at for record in records[WARM_UP:-1]}
    return [
        max(0.0, one.admitted_at - published[one.needed])
        for one in admitted
        if one.needed in published and one.asked_at < published[one.needed]
    ]


def _percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at_99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return {"median": 1e3 * statistics.median(ordered), "p99": 1e3 * at_99}
