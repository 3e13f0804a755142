"""Whether learners and engines fit into the memory of their devices, and which setting to change if not."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from srft_ray.config.resolve import Resolved
from srft_ray.config.schedule import stage_size
from srft_ray.config.schema import Config
from srft_ray.errors import UserError, require
from srft_ray.models import count_parameters, engine_dtype, load_model_config, resolve_dtype
from srft_ray.run.engine_memory import BATCHED_TOKENS, EngineMemory, engine_memory_share
from srft_ray.run.memory import GIB, LearnerMemory, LearnerSetting
from srft_ray.run.model_shape import ModelShape
from srft_ray.run.placement import Placement, recomputes_activations
from srft_ray.train.lora import count_adapter_parameters

COMPARING = {"entropy_gradient", "reference_kl", "teacher_kl"}  # needs of terms
LEAST_CACHE = GIB  # of an engine whose share of the memory is made smaller


def model_shape(config: Config) -> ModelShape:
    """From the model's configuration; its weights are not needed."""
    model = load_model_config(config.model, needs_weights=False)
    shape = ModelShape.of(model, count_parameters(config.model))
    if config.learner.lora.rank:
        adapters = count_adapter_parameters(config.model, config.learner.lora)
        return dataclasses.replace(shape, adapters=adapters)
    return shape


def learner_memory(resolved: Resolved, placement: Placement, shape: ModelShape) -> LearnerMemory:
    """Of each learner."""
    config = resolved.config
    steps = config.trainer.steps
    algorithms = [resolved.algorithm.stage(step, steps).algorithm for step in (0, steps - 1)]
    setting = LearnerSetting(
        config.learner,
        resolved.learners.low,
        _bytes_of(resolve_dtype(config.model, placement.device)),
        largest_micro_batch(resolved),
        recomputes_activations(config.learner, placement),
        resolved.algorithm.uses_reference,
        resolved.algorithm.uses_critic,
        any(algorithm.buffer_size for algorithm in algorithms),
        any(COMPARING & algorithm.needs for algorithm in algorithms),
        placement.device == "cuda",
        config.trainer.async_checkpoints,
    )
    return LearnerMemory.of(shape, setting)


def largest_micro_batch(resolved: Resolved) -> int:
    """Tokens of the largest micro-batch that the sequences of a step can fill."""
    config = resolved.config
    steps = config.trainer.steps
    most = 0
    for step in (0, steps - 1):
        stage = resolved.algorithm.stage(step, steps)
        of_group = config.rollout.num_rollouts if stage.algorithm.uses_rollouts else 0
        of_group += config.data.max_demonstrations if stage.algorithm.uses_demonstrations else 0
        most = max(most, stage_size(config.trainer, stage) * of_group)
    share = math.ceil(most / resolved.learners.low)
    return min(config.learner.micro_batch_tokens, share * config.model.max_length)


def engine_memory(resolved: Resolved, placement: Placement, shape: ModelShape, gpu: float) -> EngineMemory:
    """Of an engine on each of its GPUs, which have `gpu` bytes."""
    config = resolved.config
    rollout = config.rollout
    w = _bytes_of(engine_dtype(config.model, rollout.dtype, placement.device))
    memory = gpu * engine_memory_share(rollout, placement)
    return EngineMemory.of(
        shape,
        w,
        rollout.tensor_parallel,
        rollout.max_num_seqs,
        config.model.max_length,
        memory,
        rollout.engine.get("max_num_batched_tokens", BATCHED_TOKENS),
    )


def check_memory(resolved: Resolved, placement: Placement, shape: ModelShape, device: float | None) -> None:
    """Raises UserError if a learner or an engine needs more memory than its device has.

    `device`: bytes of the largest GPU, or of the machine if it alone runs everything on CPU; None if they are
    not known.
    """
    require(
        not (placement.shares_gpus and "kv_cache_memory_bytes" in resolved.config.rollout.engine),
        "rollout.engine.kv_cache_memory_bytes cannot be set where a learner and an engine share a GPU: "
        "rollout.gpu_memory_utilization decides it there.",
    )
    if device and placement.device == "cpu":
        _check_machine(resolved, placement, shape, device)
    elif device:
        if resolved.needs_engines:
            _check_engine(resolved, placement, shape, device)
        _check_learner(resolved, placement, shape, device)


def _check_machine(resolved: Resolved, placement: Placement, shape: ModelShape, memory: float) -> None:
    learner = learner_memory(resolved, placement, shape)
    needed = resolved.learners.low * (learner.states + learner.host)
    if resolved.needs_engines:
        needed += resolved.engines.low * engine_memory(resolved, placement, shape, 0).weights
    require(
        needed <= memory,
        f"Learners and engines need at least {_gib(needed)} for weights, gradients and optimizer, and this "
        f"machine has {_gib(memory)}: set model.path to a smaller model, or cluster.address to a cluster.",
    )


def _check_engine(resolved: Resolved, placement: Placement, shape: ModelShape, gpu: float) -> None:
    found = engine_memory(resolved, placement, shape, gpu)
    share = engine_memory_share(resolved.config.rollout, placement)
    longest = resolved.config.model.max_length
    require(
        found.sequences is None or found.sequences >= 1,
        f"An engine has {share:g} of a GPU's {_gib(gpu)} for {_gib(found.weights)} of weights, "
        f"{_gib(found.step + found.runtime)} of vLLM's own, and a cache that would not hold one sequence of "
        f"model.max_length={longest} tokens: raise rollout.gpu_memory_utilization or "
        "rollout.tensor_parallel.",
    )


def _check_learner(resolved: Resolved, placement: Placement, shape: ModelShape, gpu: float) -> None:
    found = learner_memory(resolved, placement, shape)
    room = _room(resolved, placement, gpu)
    if found.peak <= room:
        return
    where = f"{_gib(room)} that an engine leaves of its GPU" if placement.colocated else _gib(gpu)
    raise UserError(
        f"A learner needs at least {_gib(found.peak)}, {_gib(found.states)} of them for weights, gradients "
        f"and optimizer, which is more than the {where}: {_advice(resolved, placement, shape, gpu)}."
    )


def _room(resolved: Resolved, placement: Placement, gpu: float) -> float:
    """What a learner may have of its GPU."""
    share = engine_memory_share(resolved.config.rollout, placement) if placement.colocated else 0.0
    return gpu * (1 - share)


def _advice(resolved: Resolved, placement: Placement, shape: ModelShape, gpu: float) -> str:
    """The first change with which a learner fits, as words."""
    for section, changes in _changes(resolved, placement, shape, gpu):
        changed = with_changes(resolved, section, changes)
        fits = learner_memory(changed, placement, shape).peak <= _room(changed, placement, gpu)
        cached = section == "learner" or engine_memory(changed, placement, shape, gpu).cache >= LEAST_CACHE
        if fits and cached:
            keys = [f"{section}.{key}={str(value).lower()}" for key, value in changes.items()]
            return f"set {' and '.join(keys)}"
    return "take GPUs with more memory, or more learners (learner.num_workers) with learner.zero_stage=3"


def _changes(
    resolved: Resolved, placement: Placement, shape: ModelShape, gpu: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Changes of a section that change no update, the cheapest first."""
    learner = resolved.config.learner
    if placement.colocated:
        left = 1 - learner_memory(resolved, placement, shape).peak / gpu
        yield "rollout", {"gpu_memory_utilization": max(0.01, math.floor(100 * left) / 100)}
    saving = {"activation_checkpointing": True}
    divided = {"zero_stage": 3} if resolved.learners.low > 1 else {}
    offloaded = {"zero_stage": max(1, learner.zero_stage), **divided, "offload_optimizer": True}
    for base in ({}, saving, {**divided, **saving}, {**saving, **offloaded}):
        new = {key: value for key, value in base.items() if getattr(learner, key) != value}
        yield "learner", new
        tokens = learner.micro_batch_tokens // 2
        while tokens >= resolved.config.model.max_length:
            yield "learner", {**new, "micro_batch_tokens": tokens}
            tokens //= 2


def with_changes(resolved: Resolved, section: str, changes: dict[str, Any]) -> Resolved:
    """With other values in a section of the config."""
    changed = dataclasses.replace(getattr(resolved.config, section), **changes)
    return dataclasses.replace(resolved, config=dataclasses.replace(resolved.config, **{section: changed}))


def _bytes_of(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def _gib(number: float) -> str:
    return f"{number / GIB:.1f} GiB"
