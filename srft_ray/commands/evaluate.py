"""Evaluation of a model on disk by the engine and the verifier that training uses."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from algorithms import GRPO
from srft_ray.config.load import as_config
from srft_ray.config.resolve import resolve
from srft_ray.config.schema import Config
from srft_ray.data.blocks import groups_of
from srft_ray.data.tokenize import load_tokenizer
from srft_ray.models import engine_dtype, load_model_config
from srft_ray.observe.evaluation import Scored, evaluation_record
from srft_ray.run.cluster import placed
from srft_ray.run.preflight import check_installation, evaluation_sizes, plan_stream, prepare_evaluation
from srft_ray.run.supervisor import wait_for_rollouts
from srft_ray.run.training_stream import StreamSource
from srft_ray.sync.coordinator import Coordinator
from srft_ray.sync.health import HealthMonitor

BLOCKS_AHEAD = 3  # of each engine, beside the block that it generates


def evaluate(
    config: Config | str | Path, *, verifier: Callable[..., Any] | None = None
) -> list[dict[str, Any]]:
    """Samples `evaluation.samples` responses for each prompt of each set.

    Args:
        config: a config, which is not changed, or the path of a YAML file.
        verifier: as of `fit`.

    Returns:
        One record for each set: avg@k and pass@k in percent with their 95 % intervals, mean length, entropy.

    Raises:
        UserError: bad config, model or data.
        RunFailed: the engines do not deliver.
    """
    resolved = resolve(as_config(config), GRPO(), verifier)
    config = resolved.config
    check_installation(config, verifier)
    load_model_config(config.model)
    sets = prepare_evaluation(resolved, load_tokenizer(config.model))
    plan = plan_stream(resolved, evaluation_sizes(config, sets))
    plan = dataclasses.replace(plan, steps=0, evaluate_every=1, learner_multiple=1)
    with placed(resolved, engines=True) as (device, _):
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
            coordinator,
            device,
            engine_dtype(config.model, config.rollout.dtype, device),
            verifier,
        )
        task = ray.remote(num_cpus=0)(_collect).remote(source, start.generation)
        return wait_for_rollouts(task, coordinator, config.rollout)


def _collect(source: StreamSource, generation: int) -> list[dict[str, Any]]:
    """Runs the stream to its end in a task, so that the driver's process stays free of Ray Data's threads."""
    scored: dict[str, list[Scored]] = {name: [] for name in source.evaluation}
    batches = source.stream(0, generation).iter_batches(
        batch_size=source.plan.block, batch_format="numpy", prefetch_batches=0
    )
    for batch in batches:
        for group in groups_of(batch):
            if group.group_id >= 0:
                scored[group.dataset].append(Scored.of(group))
    return [evaluation_record(name, 0, found) for name, found in scored.items()]
