"""Evaluation of a model on disk by the engine and the verifier that training uses."""

import dataclasses
from typing import Any

import ray

from algorithms import GRPO
from srft_ray.config.schema import Config
from srft_ray.data.blocks import groups_of
from srft_ray.data.plan import StreamPlan, make_plan
from srft_ray.data.stream import StreamFactory
from srft_ray.data.tokenize import load_tokenizer
from srft_ray.models import load_model_config, resolve_dtype
from srft_ray.observe import metrics
from srft_ray.run.cluster import placed
from srft_ray.run.preflight import data_folder, evaluation_sizes, prepare_evaluation, resolve_settings
from srft_ray.sync.coordinator import Coordinator


def evaluate(config: Config) -> list[dict[str, Any]]:
    """Samples `evaluation.samples` responses for each prompt of each set; one record a set: avg@k, pass@k, intervals.

    Raises:
        UserError: bad config, model or data.
    """
    resolve_settings(config)
    config.rollout.max_staleness = 3  # four blocks in flight for each engine
    load_model_config(config)
    sets = prepare_evaluation(config, load_tokenizer(config.model), data_folder(config))
    plan = make_plan(config, evaluation_sizes(config, sets), GRPO())
    with placed(config, engines=True) as (device, _):
        coordinator = ray.remote(Coordinator).options(num_cpus=0).remote(0)
        ray.get(coordinator.restart.remote(0))
        plan = dataclasses.replace(plan, steps=0, evaluate_every=1, learner_multiple=1)
        nothing = next(iter(sets.values()))
        factory = StreamFactory(
            config, None, GRPO(), plan, nothing, sets, coordinator, device, resolve_dtype(config, device)
        )
        return ray.get(ray.remote(num_cpus=0)(_collect).remote(factory, plan))


def _collect(factory: StreamFactory, plan: StreamPlan) -> list[dict[str, Any]]:
    scored: dict[str, list[metrics.Scored]] = {name: [] for name in plan.evaluation_sizes}
    for batch in factory.stream(0).iter_batches(
        batch_size=plan.block, batch_format="numpy", prefetch_batches=0
    ):
        for group in groups_of(batch):
            if group.group_id >= 0:
                scored[group.dataset].append(metrics.Scored.of(group))
    return [metrics.evaluation_record(name, 0, found) for name, found in scored.items()]
