"""Samples evaluations of models that share engines, and writes their ledgers."""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from srft_ray.commands.model_weights import published_tensors
from srft_ray.config.resolve import Resolved
from srft_ray.data.blocks import groups_of
from srft_ray.data.plan import StreamPlan
from srft_ray.data.store import PreparedData
from srft_ray.models import engine_dtype
from srft_ray.observe import evaluation_ledger
from srft_ray.observe.evaluation import evaluation_record
from srft_ray.observe.journal import EVALUATIONS, append_json
from srft_ray.run.cluster import placed
from srft_ray.run.placement import Placement
from srft_ray.run.supervisor import wait_for_rollouts
from srft_ray.run.training_stream import BegunRun, StreamSource, stream_of
from srft_ray.sync.coordinator import Coordinator
from srft_ray.sync.fingerprint import FingerprintedWeights
from srft_ray.sync.health import HealthMonitor
from srft_ray.sync.transport import ObjectStoreTransport
from srft_ray.sync.versions import fingerprint_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLOCKS_AHEAD = 3  # of each engine, beside the block that it generates


@dataclass(frozen=True)
class ModelEvaluation:
    """The evaluation of one model, which can be sampled.

    Attributes:
        sets: rows of each evaluation set.
        folder: where its ledger is.
        first: position in the stream of the first group that is to be sampled.
    """

    resolved: Resolved
    tokenizer: "PreTrainedTokenizerBase"
    sets: dict[str, PreparedData]
    plan: StreamPlan
    folder: Path
    first: int = 0

    @property
    def blocks(self) -> int:
        """Blocks that are to be sampled."""
        return (self.plan.length(0, 0) - self.first) // self.plan.block


@dataclass(frozen=True)
class Begun:
    """A part of the stream: the groups that the ledger of one model lacks.

    Attributes:
        folder: where the ledger is.
    """

    run: BegunRun
    blocks: int
    folder: Path


def sample(models: Sequence[ModelEvaluation]) -> list[list[dict[str, Any]]]:
    """Samples what the ledgers of the models lack, one model after another; gives the records of each.

    Args:
        models: several only if `series_of_models` puts them into one series.

    Raises:
        RunFailed: the engines do not deliver.
    """
    resolved = models[0].resolved
    config = resolved.config
    with placed(resolved, engines=True) as placement:
        monitor = HealthMonitor(config.rollout.stall_timeout_s, print)
        coordinator = ray.remote(Coordinator).options(num_cpus=0).remote(0, monitor)
        later = [(number, 0) for number in range(1, len(models))]
        start = ray.get(coordinator.restart.remote(0, 0, later))
        begun = [
            Begun(
                BegunRun(_source(model, coordinator, placement), 0, start.generation + number, model.first),
                model.blocks,
                model.folder,
            )
            for number, model in enumerate(models)
        ]
        # A task, so that the driver's process stays free of Ray Data's threads, on the node of the folders.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(_collect)
        return wait_for_rollouts(task.remote(begun), coordinator, config.rollout)


def _source(model: ModelEvaluation, coordinator: Any, placement: Placement) -> StreamSource:
    resolved = model.resolved
    # Weights are published by one task: there is no group of learners that could send them together.
    rollout = replace(resolved.config.rollout, transport="object_store")
    config = replace(resolved.config, rollout=rollout)
    return StreamSource(
        config,
        resolved.algorithm,
        resolved.engines,
        BLOCKS_AHEAD,
        model.plan,
        next(iter(model.sets.values())),  # nothing is read of it: the plan has no training step
        model.sets,
        resolved.evaluation,
        coordinator,
        placement,
        engine_dtype(config.model, rollout.dtype, placement.device),
        resolved.verifier,
    )


def _collect(models: Sequence[Begun]) -> list[list[dict[str, Any]]]:
    """Runs the stream to its end and writes a part of the ledger for each block.

    It has the learners' part: when a model is done it publishes the next one, which the engines wait for.
    They start from the first.
    """
    stream = stream_of([model.run for model in models])
    batches = iter(
        stream.iter_batches(
            batch_size=models[0].run.source.plan.block, batch_format="numpy", prefetch_batches=0
        )
    )
    records = []
    for number, model in enumerate(models):
        source = model.run.source
        with closing(_transport(model.run)) as transport:
            published = _publish(source, transport) if number else ""
            write_parts(model.folder, source.evaluation, islice(batches, model.blocks), published)
        records.append(write_records(model.folder, source.plan))
    if next(batches, None) is not None:
        raise RuntimeError("the stream has blocks that belong to no model")
    return records


def _transport(run: BegunRun) -> ObjectStoreTransport:
    return ObjectStoreTransport(run.source.coordinator, run.source.config.rollout, run.generation)


def _publish(source: StreamSource, transport: ObjectStoreTransport) -> str:
    """Gives the engines the weights of the source's model; returns their fingerprint."""
    weights = FingerprintedWeights(published_tensors(source.config.model))
    transport.publish(0, weights, sender=True)
    return fingerprint_of(weights.exhaust())


def write_parts(
    folder: Path, sets: Iterable[str], blocks: Iterable[dict[str, Any]], published: str = ""
) -> None:
    """Writes what the ledger in the folder lacks of the blocks.

    Args:
        published: fingerprint of the weights that sampled them; empty for those that engines start from.

    Raises:
        RuntimeError: an engine had other weights.
    """
    done = {name: evaluation_ledger.finished_groups(folder, name, 0) for name in sets}
    parts = {name: max([-1, *evaluation_ledger.parts_of(folder, name, 0)]) + 1 for name in done}
    for block in blocks:
        groups = groups_of(block)
        name = groups[0].dataset  # a block is of one set
        # The first block may have been done in part, with blocks of another size.
        new = [group for group in groups if group.group_id >= 0 and group.group_id not in done[name]]
        for group in new:
            if published and group.fingerprints != {0: published}:
                raise RuntimeError(
                    f"an engine sampled group {group.group_id} of {name} with other weights "
                    f"({group.fingerprints}) than those that were published ({published})"
                )
        if new:
            evaluation_ledger.write_part(folder, name, 0, parts[name], new)
            parts[name] += 1


def first_missing(folder: Path, plan: StreamPlan) -> int | None:
    """Position in the stream of the block with the first group that the ledger lacks; None if it has all."""
    position = 0
    for segment in plan.segments(0):
        done = evaluation_ledger.finished_groups(folder, segment.dataset, segment.step)
        missing = next((group for group in range(segment.groups) if group not in done), None)
        if missing is not None:
            return position + missing // plan.block * plan.block
        position += segment.padded
    return None


def write_records(folder: Path, plan: StreamPlan) -> list[dict[str, Any]]:
    """The figures of all sets, computed anew from the ledger, which is made whole first."""
    records = []
    (folder / EVALUATIONS).unlink(missing_ok=True)
    for segment in plan.segments(0):
        name = segment.dataset
        if parts := evaluation_ledger.parts_of(folder, name, 0):
            table = evaluation_ledger.join(folder, name, 0, parts)
        else:
            table = evaluation_ledger.read(folder, name, 0)
        record = evaluation_record(name, 0, table)
        append_json(folder / EVALUATIONS, record)
        records.append(record)
    return records
