"""The stream of a run: built anew from the newest whole checkpoint each time that the learners start."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.data import Dataset

from algorithms import Algorithm
from srft_ray.config.evaluation import EvaluationSetSection
from srft_ray.config.rollout import RolloutSection
from srft_ray.config.schema import Config
from srft_ray.config.settings import Bounds
from srft_ray.config.training import LoraSection
from srft_ray.data.plan import StreamPlan
from srft_ray.data.reader import GroupReader, GroupSettings
from srft_ray.data.store import PreparedData
from srft_ray.data.stream import ActorPool, make_stream
from srft_ray.errors import RunFailed
from srft_ray.rollout.credit import SupervisedReader
from srft_ray.rollout.settings import RolloutSettings
from srft_ray.rollout.worker import RolloutWorker
from srft_ray.run.directory import choose_start
from srft_ray.run.engine_memory import engine_memory_share
from srft_ray.run.placement import Placement
from srft_ray.run.transport_backend import with_backend
from srft_ray.sync.processes import Process
from srft_ray.train.checkpoint import CheckpointStore


@dataclass(frozen=True)
class StreamSource:
    """Makes the stream of a config from a step on.

    Attributes:
        engines: how many there may be; None for a stream in which nothing is sampled.
        evaluation_settings: how each evaluation set is sampled and judged.
        max_staleness: versions that a training rollout may be behind when it starts.
        coordinator: handle of the coordinator's actor.
        verifier_function: a verifier given from Python, in the place of the config's.
        lora: the adapter that the learners publish; None if they publish all weights, or there are none.
        run_dir: of the run whose timeline shows the start of the engines; None for none.
        beside_cache: bytes that an engine needs of a GPU that it shares with a learner, for everything but
            its cache; None where it shares none.
    """

    config: Config
    algorithm: Algorithm
    engines: Bounds | None
    max_staleness: int
    plan: StreamPlan
    train: PreparedData
    evaluation: dict[str, PreparedData]
    evaluation_settings: dict[str, EvaluationSetSection]
    coordinator: Any
    placement: Placement
    dtype: str
    verifier_function: Callable[..., Any] | None = None
    lora: LoraSection | None = None
    run_dir: Path | None = None
    beside_cache: int | None = None

    def stream(self, start: int, generation: int, first: int = 0) -> Dataset:
        """The stream from step `start` on, for the learners' start of that generation.

        `first`: position in it of the first group that is wanted, a multiple of the size of a block.
        """
        if self.engines is None:
            return make_stream(self.plan, start, SupervisedReader(self.reader(start)), first)
        rollout = self.config.rollout
        pool = ActorPool(
            partial(self._worker, start, generation),
            self.engines,
            self.max_staleness,
            rollout.cpus_per_engine,
            self.placement.engine_gpus,
            rollout.max_restarts,
            rollout.resources,
        )
        return make_stream(self.plan, start, pool, first)

    def reader(self, start: int) -> GroupReader:
        """Reads the groups of the stream from step `start` on."""
        config = self.config
        settings = GroupSettings(
            config.run.seed,
            config.rollout.num_rollouts,
            config.rollout.max_new_tokens,
            config.data.max_demonstrations,
            self.evaluation_settings,
            self.max_staleness + 1,
        )
        return GroupReader(settings, self.algorithm, self.plan, start, self.train, self.evaluation)

    def _worker(self, start: int, generation: int) -> RolloutWorker:
        config = self.config
        settings = RolloutSettings(
            config.run.seed,
            self.placement.device,
            self.dtype,
            config.model,
            self._rollout(),
            self.evaluation_settings,
            config.verifier,
            self.max_staleness,
            self.verifier_function,
            self.placement.engine_threads,
            self.lora,
            self.run_dir,
            self.beside_cache,
        )
        return RolloutWorker(settings, self.reader(start), self.coordinator, generation)

    def _rollout(self) -> RolloutSection:
        """With the share of a GPU's memory that the engines get where they have it for themselves, or not."""
        rollout = with_backend(self.config.rollout, self.placement)
        return replace(rollout, gpu_memory_utilization=engine_memory_share(rollout, self.placement))


@dataclass(frozen=True)
class TrainingStream:
    """Called by Ray Train each time that it starts the learners."""

    source: StreamSource
    store: CheckpointStore
    run_id: str

    def __call__(self) -> Dataset:
        # Ray Train waits for this call before it places learners: until then their absence is no failure.
        ray.get(self.source.coordinator.set_learners_present.remote(True, Process.this()))
        # The checkpoint is chosen here, once for each start, and the learners ask the coordinator for it.
        try:
            step = choose_start(self.store, self.store.run_dir, self.run_id)
        except RunFailed as failure:
            ray.get(self.source.coordinator.abort.remote(str(failure)))
            raise
        start = ray.get(self.source.coordinator.restart.remote(step))
        return self.source.stream(start.step, start.generation)
