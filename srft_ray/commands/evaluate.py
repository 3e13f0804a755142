"""Evaluation of a model on disk by the engine and the verifier that training uses."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from algorithms import GRPO
from srft_ray.commands.evaluation_folder import evaluation_folder
from srft_ray.config.load import as_config, to_yaml
from srft_ray.config.resolve import Resolved, resolve
from srft_ray.config.schema import Config
from srft_ray.data.blocks import groups_of
from srft_ray.data.plan import StreamPlan
from srft_ray.data.store import PreparedData
from srft_ray.data.tokenize import load_tokenizer
from srft_ray.models import engine_dtype, load_model_config
from srft_ray.observe import evaluation_ledger
from srft_ray.observe.evaluation import evaluation_record
from srft_ray.observe.journal import EVALUATIONS, append_json, write_whole
from srft_ray.run.cluster import placed
from srft_ray.run.directory import RECORD
from srft_ray.run.lock import claimed
from srft_ray.run.preflight import check_installation, evaluation_sizes, plan_stream, prepare_evaluation
from srft_ray.run.supervisor import wait_for_rollouts
from srft_ray.run.training_stream import StreamSource
from srft_ray.sync.coordinator import Coordinator
from srft_ray.sync.health import HealthMonitor

BLOCKS_AHEAD = 3  # of each engine, beside the block that it generates


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was evaluated.

    Attributes:
        folder: holds config.yaml, evaluations.jsonl and the evaluation ledger, as a run directory does.
        records: one for each set: avg@k, pass@k and maj@k in percent with 95 % intervals, lengths, entropy.
    """

    folder: Path
    records: list[dict[str, Any]]


def evaluate(
    config: Config | str | Path,
    *,
    verifier: Callable[..., Any] | None = None,
    folder: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Samples responses for each prompt of each evaluation set; see `evaluate_model`. Returns its records."""
    return evaluate_model(config, verifier=verifier, folder=folder).records


def evaluate_model(
    config: Config | str | Path,
    *,
    verifier: Callable[..., Any] | None = None,
    folder: str | Path | None = None,
) -> Evaluation:
    """Samples responses for each prompt of each evaluation set, and keeps them in an evaluation ledger.

    The same call continues an evaluation that died, and repeats nothing of one that is finished.

    Args:
        config: a config, which is not changed, or the path of a YAML file.
        verifier: as of `fit`.
        folder: where the ledger is written; by default a folder in `run.dir` that is named after the model
            and everything that the result depends on.

    Raises:
        UserError: bad config, model or data; or the folder holds another evaluation.
        RunFailed: the engines do not deliver.
    """
    resolved = resolve(as_config(config), GRPO(), verifier)
    config = resolved.config
    check_installation(config, verifier)
    load_model_config(config.model)
    sets = prepare_evaluation(resolved, load_tokenizer(config.model))
    plan = plan_stream(resolved, evaluation_sizes(resolved, sets))
    # In small blocks, each of which is written when it has ended; several are in flight.
    plan = dataclasses.replace(plan, steps=0, evaluate_every=1, learner_multiple=1, bundles={})
    target = evaluation_folder(resolved, Path(folder) if folder else None)
    with claimed(target):
        write_whole(target / RECORD, to_yaml(config))
        position = first_missing(target, plan)
        if position is not None:
            _sample(resolved, plan, sets, target, position)
        return Evaluation(target, _records(target, plan))


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


def _records(folder: Path, plan: StreamPlan) -> list[dict[str, Any]]:
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


def _sample(
    resolved: Resolved, plan: StreamPlan, sets: dict[str, PreparedData], folder: Path, position: int
) -> None:
    """Samples what the ledger lacks, from a position of the stream on."""
    config = resolved.config
    with placed(resolved, engines=True) as placement:
        monitor = HealthMonitor(config.rollout.stall_timeout_s, print)
        coordinator = ray.remote(Coordinator).options(num_cpus=0).remote(0, monitor)
        start = ray.get(coordinator.restart.remote(0))
        source = StreamSource(
            config,
            resolved.algorithm,
            resolved.engines,
            BLOCKS_AHEAD,
            plan,
            next(iter(sets.values())),  # nothing is read of it: the plan has no training step
            sets,
            resolved.evaluation,
            coordinator,
            placement,
            engine_dtype(config.model, config.rollout.dtype, placement.device),
            resolved.verifier,
        )
        # A task, so that the driver's process stays free of Ray Data's threads, on the node of the folder.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(_collect)
        collected = task.remote(source, start.generation, folder, position)
        wait_for_rollouts(collected, coordinator, config.rollout)


def _collect(source: StreamSource, generation: int, folder: Path, position: int) -> None:
    """Runs the stream to its end and writes a part of the ledger for each block."""
    names = list(source.evaluation)
    done = {name: evaluation_ledger.finished_groups(folder, name, 0) for name in names}
    parts = {name: max([-1, *evaluation_ledger.parts_of(folder, name, 0)]) + 1 for name in names}
    batches = source.stream(0, generation, position).iter_batches(
        batch_size=source.plan.block, batch_format="numpy", prefetch_batches=0
    )
    for batch in batches:
        groups = groups_of(batch)
        name = groups[0].dataset  # a block is of one set
        # The first block may have been done in part, with blocks of another size.
        new = [group for group in groups if group.group_id >= 0 and group.group_id not in done[name]]
        if new:
            evaluation_ledger.write_part(folder, name, 0, parts[name], new)
            parts[name] += 1
