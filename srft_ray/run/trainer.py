"""Ray Train's trainer, with the stream of groups as its dataset."""

import dataclasses
import os
import uuid
from collections.abc import Sequence
from typing import Any

from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from srft_ray.config.resolve import Resolved
from srft_ray.data.reader import GroupReader
from srft_ray.data.stream import execution_options
from srft_ray.models import count_parameters, engine_dtype, resolve_dtype
from srft_ray.observe.loggers import LoggerSettings
from srft_ray.run.elasticity import CheckpointBeforeResize, is_preempted
from srft_ray.run.memory_check import engine_memory, model_shape
from srft_ray.run.placement import Placement, learner_resources, recomputes_activations
from srft_ray.run.preflight import Prepared
from srft_ray.run.series import Run, events_of
from srft_ray.run.training_stream import StreamSource, TrainingStream
from srft_ray.run.transport_backend import with_backend
from srft_ray.train.entry import train_loop
from srft_ray.train.job import Job

ELASTIC_START_TIMEOUT_S = 30.0
# How often Ray Train asks learners whether they run. It sees their end, and their death, that much later.
LEARNERS_LOOK_S = 0.25
RAYS_LOOK_S = 2.0
MANY_LEARNERS = 64  # from which on the interval is Ray's


def make_trainer(runs: Sequence[Run], coordinator: Any, placement: Placement) -> TorchTrainer:
    """The trainer of a series."""
    resolved = runs[0].prepared.resolved
    learner, trainer = resolved.config.learner, resolved.config.trainer
    _set_deadlines(resolved)
    sources = [stream_source(run.prepared, coordinator, placement) for run in runs]
    stores = [run.prepared.store for run in runs]
    dtype = resolve_dtype(resolved.config.model, placement.device)
    jobs = [
        _job(run, coordinator, dtype, placement, source.reader(0))
        for run, source in zip(runs, sources, strict=True)
    ]
    workers = (
        (resolved.learners.low, resolved.learners.high)
        if resolved.learners.elastic
        else resolved.learners.low
    )
    return TorchTrainer(
        train_loop,
        train_loop_config={"jobs": jobs},
        torch_config=TorchConfig(
            backend="nccl" if placement.device == "cuda" else "gloo", timeout_s=int(learner.timeout_s)
        ),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=placement.device == "cuda",
            resources_per_worker=learner_resources(learner, placement),
            elastic_resize_monitor_interval_s=learner.resize_interval_s,
        ),
        datasets={"train": TrainingStream(sources, stores, [run.id for run in runs])},
        dataset_config=DataConfig(execution_options=execution_options(), enable_shard_locality=False),
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=str(resolved.run_dir / ".ray_train"),
            callbacks=[CheckpointBeforeResize(coordinator, trainer.resize_timeout_s, events_of(runs))],
            failure_config=FailureConfig(max_failures=trainer.max_failures),
        ),
    )


def stream_source(prepared: Prepared, coordinator: Any, placement: Placement) -> StreamSource:
    resolved = prepared.resolved
    config = resolved.config
    beside_cache = None
    if placement.shares_gpus:
        beside_cache = engine_memory(resolved, placement, model_shape(config), 0.0).beside_cache
    return StreamSource(
        config,
        resolved.algorithm,
        resolved.engines if resolved.needs_engines else None,
        config.rollout.max_staleness,
        prepared.plan,
        prepared.train,
        prepared.evaluation,
        resolved.evaluation,
        coordinator,
        placement,
        engine_dtype(config.model, config.rollout.dtype, placement.device),
        resolved.verifier,
        config.learner.lora if config.learner.lora.rank else None,
        resolved.run_dir,
        beside_cache,
    )


def _set_deadlines(resolved: Resolved) -> None:
    """Ray Train reads its deadlines from the environment."""
    learner = resolved.config.learner
    placing_s = learner.start_timeout_s
    if resolved.learners.elastic:
        # Elastic learners are counted anew after a try: the count may be of before a node died.
        placing_s = min(ELASTIC_START_TIMEOUT_S, learner.start_timeout_s)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(placing_s)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(learner.timeout_s)
    look_s = LEARNERS_LOOK_S if resolved.learners.high < MANY_LEARNERS else RAYS_LOOK_S
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = str(look_s)


def _job(run: Run, coordinator: Any, dtype: str, placement: Placement, reader: GroupReader) -> Job:
    prepared, resolved = run.prepared, run.prepared.resolved
    config = resolved.config
    recomputed = recomputes_activations(config.learner, placement)
    loggers = LoggerSettings(
        config.run.name, resolved.run_dir, tuple(config.run.loggers), dataclasses.asdict(config)
    )
    return Job(
        resolved.run_dir,
        run.id,
        config.run.seed,
        config.model,
        with_backend(config.rollout, placement),
        dataclasses.replace(config.learner, activation_checkpointing=recomputed),
        config.trainer,
        resolved.algorithm,
        resolved.needs_engines,
        prepared.plan,
        reader,
        prepared.store,
        coordinator,
        loggers,
        dtype,
        placement.learner_threads,
        is_preempted,
        count_parameters(config.model),
        config.ledger.tokens,
        prepared.train.counts.kept if resolved.algorithm.uses_history else 0,
    )
