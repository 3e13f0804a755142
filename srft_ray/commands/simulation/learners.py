"""Simulated learners: threads that ask the coordinator what `LearnerWorker` asks it, and sleep where it would
update the policy."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch

from algorithms import Group
from srft_ray.commands.simulation.job import WEIGHT_BYTES, SimulatedJob
from srft_ray.sync.fingerprint import FingerprintedWeights
from srft_ray.sync.pieces import Rank
from srft_ray.sync.transport import REPUBLISHER, ObjectStoreTransport
from srft_ray.sync.versions import fingerprint_of
from srft_ray.train.job import Batches, LeaveQuestion
from srft_ray.train.provenance import Provenance, ProvenanceError


@dataclass(frozen=True)
class StepRecord:
    """A simulated step.

    Attributes:
        started_at, ended_at: seconds since the epoch.
        publish_s: seconds of the publication.
        published_at: when the version after it was there, in seconds since the epoch; 0 if there was none.
    """

    step: int
    started_at: float
    ended_at: float
    publish_s: float
    published_at: float

    @property
    def step_s(self) -> float:
        return self.ended_at - self.started_at


class Mailbox:
    """Blocks on their way from the engines to a learner, who takes them in the order of the stream."""

    def __init__(self) -> None:
        self._blocks: dict[int, dict[str, Any]] = {}
        self._changed = threading.Condition()

    def put(self, number: int, block: dict[str, Any]) -> None:
        with self._changed:
            self._blocks[number] = block
            self._changed.notify_all()

    def take(self, numbers: range) -> Iterator[dict[str, Any]]:
        """The blocks of these numbers, each as soon as it is there."""
        for number in numbers:
            with self._changed:
                self._changed.wait_for(lambda number=number: number in self._blocks)
                block = self._blocks.pop(number)
            yield block


class SimulatedLearners:
    """All learners of a job; `run` returns after the last step."""

    def __init__(self, job: SimulatedJob, coordinator: Any, generation: int) -> None:
        self.job = job
        self.coordinator = coordinator
        self.mailboxes = [Mailbox() for _ in range(job.setting.learners)]
        self.generation = generation
        self.hashes = [0] * job.setting.learners  # of the version that is being published
        self.provenance = Provenance(job.setting.staleness, float("inf"), torch.device("cpu"))
        self.records: list[StepRecord] = []
        self.after_step: Callable[[], None] = lambda: None
        # Stands for the collectives of a step, which take milliseconds.
        self.together = threading.Barrier(job.setting.learners)
        self.failure: Exception | None = None

    def run(self) -> None:
        """Trains all steps; raises what a learner raised."""
        ranks = range(self.job.setting.learners)
        threads = [threading.Thread(target=self._run_rank, args=(rank,)) for rank in ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failure:
            raise self.failure

    def receive(self, blocks: Iterable[tuple[int, dict[str, Any]]]) -> None:
        """Gives each numbered block to its learner."""
        for number, block in blocks:
            self.mailboxes[self.job.learner_of(number)].put(number, block)

    def end(self) -> None:
        """Has the coordinator answer what it still keeps waiting, and ends the threads that ask it."""
        ray.get(self.coordinator.request_stop.remote("the simulation has ended"))
        # Those that would publish again hear that other learners have started.
        ray.get(self.coordinator.restart.remote(self.job.plan.steps))
        for thread in threading.enumerate():
            if thread.name == REPUBLISHER:
                thread.join()

    def _run_rank(self, rank: int) -> None:
        try:
            self._train(rank)
        except threading.BrokenBarrierError:
            return  # another one has failed
        except Exception as error:
            self.failure = error
            self.together.abort()

    def _train(self, rank: int) -> None:
        batches = Batches(self.mailboxes[rank].take(self.job.of_learner(rank)))
        leave = LeaveQuestion(self.coordinator, lambda: False)
        transport = ObjectStoreTransport(self.coordinator, self.job.rollout, self.generation)
        transport.rank = Rank(rank, self.job.setting.learners)
        self._publish(0, transport)
        started_at = time.time()
        for segment in self.job.plan.segments(0):
            share = segment.padded // self.job.setting.learners
            groups = batches.take(segment, share, self.job.rollout.timeout_s, leave.look)
            if groups is None or (rank == 0 and leave.ask()):
                raise RuntimeError("the simulated learners were asked to leave")
            self.together.wait()
            self._check(segment.step, groups)
            time.sleep(self.job.learner_s)
            self.together.wait()
            learned_at = time.time()
            published = self._publish(segment.step + 1, transport)
            published_at = time.time() if published else 0.0
            if rank == 0:
                taken = self.job.plan.position(segment.step + 1)
                ray.get(self.coordinator.engine_metrics.remote(taken, segment.step + 1))
                ended_at = time.time()
                publish_s = published_at - learned_at if published else 0.0
                self.records.append(StepRecord(segment.step, started_at, ended_at, publish_s, published_at))
                self.after_step()
                started_at = ended_at

    def _publish(self, version: int, transport: ObjectStoreTransport) -> bool:
        """As `Publisher.publish`; whether somebody needs the version. Version 0 is the model itself."""
        if version == self.job.plan.steps:
            return False
        tensor = torch.full((WEIGHT_BYTES // 4,), float(version))
        weights = FingerprintedWeights(iter([("weights", tensor)] if version else ()), transport.rank)
        is_sender = transport.rank.number == 0
        transport.publish(version, weights, is_sender)
        self.hashes[transport.rank.number] = weights.exhaust()
        # Stands for the collective of `Provenance.published`.
        self.together.wait()
        if is_sender:
            self.provenance.fingerprints[version] = fingerprint_of(sum(self.hashes)) if version else ""
        self.together.wait()
        return True

    def _check(self, step: int, groups: list[Group]) -> None:
        for group in groups:
            if problem := self.provenance.problem(step, group):
                raise ProvenanceError(problem)
