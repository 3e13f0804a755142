"""The stream of a series: built anew from the newest whole checkpoints each time that the learners start."""

from collections.abc import Callable, Sequence
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
from srft_ray.rollout.series import RolloutRun, SeriesWorker
from srft_ray.rollout.settings import RolloutSettings
from srft_ray.run.directory import choose_start, is_done
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

    def stream(self, start: int, generation: int) -> Dataset:
        """The stream from step `start` on, for the learners' start of that generation."""
        return stream_of([BegunRun(self, start, generation)])

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

    def settings(self) -> RolloutSettings:
        """What an actor of the pool is given."""
        config = self.config
        return RolloutSettings(
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

    def _rollout(self) -> RolloutSection:
        """With the share of a GPU's memory that the engines get where they have it for themselves, or not."""
        rollout = with_backend(self.config.rollout, self.placement)
        return replace(rollout, gpu_memory_utilization=engine_memory_share(rollout, self.placement))


@dataclass(frozen=True)
class BegunRun:
    """A run in a stream.

    Attributes:
        start: the step that it begins at.
        generation: of the learners' start of it.
        first: position from there on of the first group that is wanted, a multiple of the size of a block.
    """

    source: StreamSource
    start: int
    generation: int
    first: int = 0


def stream_of(runs: Sequence[BegunRun]) -> Dataset:
    """The stream of runs that share engines, one after another."""
    source = runs[0].source
    plans = [(run.source.plan, run.start) for run in runs]
    firsts = [run.first for run in runs]
    if source.engines is None:
        return make_stream(plans, SupervisedReader(source.reader(runs[0].start)), firsts)
    rollout = source.config.rollout
    pool = ActorPool(
        partial(_worker, runs),
        source.engines,
        source.max_staleness,
        rollout.cpus_per_engine,
        source.placement.engine_gpus,
        rollout.max_restarts,
        rollout.resources,
    )
    return make_stream(plans, pool, firsts)


def _worker(runs: Sequence[BegunRun]) -> SeriesWorker:
    parts = [RolloutRun(run.source.settings(), run.source.reader(run.start), run.generation) for run in runs]
    return SeriesWorker(parts, runs[0].source.coordinator)


@dataclass(frozen=True)
class TrainingStream:
    """Called by Ray Train each time that it starts the learners: the stream of the runs that are not done."""

    sources: Sequence[StreamSource]
    stores: Sequence[CheckpointStore]
    run_ids: Sequence[str]

    def __call__(self) -> Dataset:
        coordinator = self.sources[0].coordinator
        # Ray Train waits for this call before it places learners: until then their absence is no failure.
        ray.get(coordinator.set_learners_present.remote(True, Process.this()))
        # Checkpoints are chosen here, once for each start, and the learners ask the coordinator for them.
        try:
            first, *later = self._starts()
        except RunFailed as failure:
            ray.get(coordinator.abort.remote(str(failure)))
            raise
        number, step = first
        generation = ray.get(coordinator.restart.remote(step, number, later)).generation
        return stream_of(
            [
                BegunRun(self.sources[number], step, generation + place)
                for place, (number, step) in enumerate([first, *later])
            ]
        )

    def _starts(self) -> list[tuple[int, int]]:
        """The runs of the stream by number, with the step that each begins at.

        Raises:
            RunFailed: as `choose_start`.
        """
        waiting = [number for number in range(len(self.sources)) if not self._is_done(number)]
        starts: list[tuple[int, int]] = []
        blocks = 0
        for number in waiting or [len(self.sources) - 1]:
            plan, store = self.sources[number].plan, self.stores[number]
            step = choose_start(store, store.run_dir, self.run_ids[number])
            stop = plan.stream_stop(step)
            blocks += plan.length(step, stop) // plan.block
            # A stream that ends before its last run does is followed by another one.
            if starts and blocks > plan.stream_blocks:
                break
            starts.append((number, step))
            if stop < plan.steps:
                break
        return starts

    def _is_done(self, number: int) -> bool:
        source = self.sources[number]
        return is_done(self.stores[number], source.config.trainer, source.plan, source.evaluation)
