"""The stream on Ray Data: positions -> groups, rolled out, judged and credited. One long execution; the coordinator paces it."""

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset, ExecutionOptions

from algorithms import Algorithm, Completion, Group, Stage
from srft_ray.config.schema import Config, bounds
from srft_ray.data.blocks import as_block
from srft_ray.data.plan import Segment, StreamPlan, needs_engines
from srft_ray.data.store import PreparedData, shuffled
from srft_ray.rollout.worker import Rollout, credit
from srft_ray.train.checkpoint import CheckpointStore

REFILL_DISTANCE = 720720 * 2**20  # positions; a multiple of every number of mini-batches up to 16


@dataclass(frozen=True)
class StreamFactory:
    """Builds the stream from the newest checkpoint on; Ray Train calls it each time that it starts the learners."""

    config: Config
    store: CheckpointStore | None
    algorithm: Algorithm
    plan: StreamPlan
    train: PreparedData
    evaluation: dict[str, PreparedData]
    coordinator: Any
    device: str
    dtype: str

    def __call__(self) -> Dataset:
        ray.get(self.coordinator.learners.remote(True, os.getpid()))  # they wait for this, not this for them
        start = self.store.newest_whole()
        ray.get(self.coordinator.restart.remote(start))
        return self.stream(start)

    def stream(self, start: int) -> Dataset:
        segments = list(self.plan.segments(start))
        total = sum(segment.padded for segment in segments)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options = execution_options()
        reader = ReadGroups(self.config, self.algorithm, self.plan, segments, self.train, self.evaluation)
        blocks = [
            pa.table({"position": np.arange(first, first + self.plan.block)})
            for first in range(0, total, self.plan.block)
        ]
        stream = ray.data.from_arrow(blocks)
        if not needs_engines(self.config, self.algorithm):
            return stream.map_batches(
                lambda block: as_block(reader.credited(reader(block))),
                batch_size=None,
                batch_format="numpy",
                num_cpus=0.1,
            )
        return self._roll_out(stream, reader)

    def _roll_out(self, stream: Dataset, reader: "ReadGroups") -> Dataset:
        rollout, (low, high) = (
            self.config.rollout,
            bounds(self.config.rollout.num_engines, "rollout.num_engines"),
        )
        blocks_per_step = max(self.plan.sizes) // self.plan.block
        # At staleness 0 no task waits at the coordinator while others run: Ray Data's loop would look for results only every 0.1 s.
        in_flight = math.ceil(blocks_per_step * (rollout.max_staleness + 1) / low)
        if (
            low < high
        ):  # all blocks of a step count as work for the engines there are; none is given back while it has none
            scaling = ray.data.DataContext.get_current().autoscaling_config
            scaling.actor_pool_util_upscaling_threshold, scaling.actor_pool_util_downscaling_threshold = (
                0.9 * low / high,
                0.0,
            )
        pool = ActorPoolStrategy(
            min_size=low,
            max_size=high,
            initial_size=low,
            max_tasks_in_flight_per_actor=in_flight,
            max_concurrent_calls_per_actor=in_flight,
            enable_true_multi_threading=True,
        )
        arguments = (self.config, reader, self.coordinator, self.device, self.dtype)
        gpus = engine_gpus(self.config) if self.device == "cuda" else 0
        return stream.map_batches(
            Rollout,
            fn_constructor_args=arguments,
            compute=pool,
            batch_size=None,
            batch_format="numpy",
            num_cpus=rollout.cpus_per_engine,
            num_gpus=gpus,
            resources=rollout.resources or None,
            max_restarts=rollout.max_restarts,
        )


def execution_options() -> ExecutionOptions:
    """In order, because groups must reach the coordinator in the order in which learners take them."""
    return ExecutionOptions(preserve_order=True)


def engine_gpus(config: Config) -> float:
    parallel = config.rollout.tensor_parallel
    return config.rollout.gpus_per_engine if parallel == 1 else float(parallel)


class ReadGroups:
    """Positions of the stream -> groups with their prompts and demonstrations."""

    def __init__(
        self,
        config: Config,
        algorithm: Algorithm,
        plan: StreamPlan,
        segments: list[Segment],
        train: PreparedData,
        evaluation: dict[str, PreparedData],
    ) -> None:
        self.config, self.algorithm, self.segments, self.train, self.evaluation = (
            config,
            algorithm,
            segments,
            train,
            evaluation,
        )
        self.positions = plan.positions()
        self.ends = np.cumsum([segment.padded for segment in segments])

    def __call__(self, block: dict[str, np.ndarray]) -> list[Group]:
        return [self._group(int(position)) for position in block["position"]]

    def _group(self, position: int) -> Group:
        index = int(np.searchsorted(self.ends, position, side="right"))
        segment = self.segments[index]
        offset = position - int(self.ends[index]) + segment.padded
        if segment.dataset == "train":
            return self._training_group(segment.step, offset)
        return self._evaluation_group(segment, offset)

    def stage(self, step: int) -> Stage:
        return self.algorithm.stage(step, self.config.trainer.steps)

    def refill(self, group: Group) -> Group:
        """The group that takes the place of one without signal, from far behind in the seeded order: it depends on nothing
        but its place and the attempt."""
        found = self._at(group.step, group.group_id + REFILL_DISTANCE)
        found.attempt = group.attempt + 1
        found.discarded_tokens = group.discarded_tokens + sum(len(c.ids) - c.prefix for c in group.rollouts)
        return found

    def lacks_signal(self, group: Group) -> bool:
        """Whether the group is to be refilled."""
        algorithm = self.stage(group.step).algorithm
        return (
            group.dataset == "train"
            and group.attempt < algorithm.max_refills
            and not algorithm.has_signal(group)
        )

    def _training_group(self, step: int, offset: int) -> Group:
        group = self._at(step, self.positions[step] + offset)
        while not group.num_rollouts and self.lacks_signal(group):
            group = self.refill(group)
        if not group.num_rollouts and not self.stage(step).algorithm.has_signal(group):
            raise RuntimeError(
                f"Step {step}: none of {group.attempt} prompts of the data has what {self.stage(step).algorithm.name} learns from."
            )
        return group

    def credited(self, groups: list[Group]) -> list[Group]:
        """Gives the completions of training groups their advantages, and says which are trained on."""
        for group in groups:
            if group.dataset == "train":
                credit(group, self.stage(group.step).algorithm)
        return groups

    def _at(self, step: int, position: int) -> Group:
        algorithm = self.stage(step).algorithm
        epoch, index = shuffled(position, self.train.counts.kept, self.config.run.seed)
        row, rollout = self.train.row(index), self.config.rollout
        num_rollouts = rollout.num_rollouts if algorithm.uses_rollouts else 0
        group = Group(
            step,
            position,
            row["prompt"],
            row["prompt_ids"],
            row["reference"],
            row["metadata"],
            num_rollouts=num_rollouts,
            max_new_tokens=rollout.max_new_tokens,
        )
        if algorithm.uses_demonstrations:
            group.completions = demonstrations(row, num_rollouts, epoch, self.config.data.max_demonstrations)
        return group

    def _evaluation_group(self, segment: Segment, offset: int) -> Group:
        if offset >= segment.groups:
            return Group(segment.step, -1, "", [], "", dataset=segment.dataset)
        row = self.evaluation[segment.dataset].row(offset)
        return Group(
            segment.step,
            offset,
            row["prompt"],
            row["prompt_ids"],
            row["reference"],
            row["metadata"],
            dataset=segment.dataset,
            num_rollouts=self.config.evaluation.samples,
            max_new_tokens=self.config.rollout.max_new_tokens,
        )


def demonstrations(row: dict[str, Any], first_sample: int, epoch: int, most: int) -> list[Completion]:
    """At most `most` of the row's demonstrations; of more, each epoch takes the next ones in turn."""
    given = row["demonstrations"]
    chosen = given if len(given) <= most else [given[(epoch * most + i) % len(given)] for i in range(most)]
    return [Completion(first_sample + i, "demo", d["text"], d["ids"]) for i, d in enumerate(chosen)]
