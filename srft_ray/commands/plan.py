"""`srft-ray plan`: checks a config and says what it will ask for, by arithmetic alone; it starts nothing."""

import math
import os

import torch
from huggingface_hub import try_to_load_from_cache

from algorithms import Algorithm, Stage
from srft_ray.commands.plan_time import parameter_bytes, sequences, time_lines
from srft_ray.config.load import to_yaml
from srft_ray.config.resolve import Resolved, resolve
from srft_ray.config.schedule import stage_size
from srft_ray.config.schema import Config
from srft_ray.data.rows import read_rows
from srft_ray.errors import require
from srft_ray.models import count_parameters, is_local
from srft_ray.run.cluster import cluster_address
from srft_ray.run.placement import choose_placement, demand
from srft_ray.run.preflight import check_installation, plan_stream, prepare_run
from srft_ray.train.lora import count_adapter_parameters

GIB = 2**30
GRADIENT_BYTES = 4  # of a parameter, also where the weights are bfloat16
INDENT = " " * 14  # the width of the first column of the text


def describe(config: Config) -> str:
    """The resolved config, its placement, and tokens, memory and time per step, as text.

    It is noted in the text, and is no error, if a model that is named by its hub id is not on this machine,
    or if this machine lacks the GPUs.

    Raises:
        UserError: everything else that `train` would refuse.
    """
    resolved = resolve(config)
    config = resolved.config
    check_installation(config)
    parameters = config.model.num_parameters
    trained = None if config.learner.lora.rank else parameters
    note = []
    if _is_elsewhere(config.model.path):
        note = [
            f"note          model {config.model.path} is not on this machine: "
            "lengths in tokens were not checked"
        ]
        rows = sum(1 for _ in read_rows(config.data, config.run.seed))
        plan_stream(resolved, {})
    else:
        rows = prepare_run(resolved).train.counts.kept
        parameters = trained = count_parameters(config.model)
        if config.learner.lora.rank:
            trained = count_adapter_parameters(config.model, config.learner.lora)
    device = _device(config)
    stages = _stages(config, resolved.algorithm)
    sections = [
        [to_yaml(config).rstrip(), ""],
        _placement(resolved, device),
        _tokens(config, stages, rows),
        _memory(resolved, device, parameters, trained),
        time_lines(resolved, stages, device, parameters),
        note,
    ]
    return "\n".join(line for lines in sections for line in lines)


def _device(config: Config) -> str:
    """The device of the run; with `run.device=auto`, the one that this machine has."""
    if config.run.device != "auto":
        return config.run.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _is_elsewhere(path: str) -> bool:
    """Whether the path is `owner/name` of a model that is not in the local hub cache."""
    if "/" not in path or is_local(path):
        return False
    return not isinstance(try_to_load_from_cache(path, "config.json"), str)


def _placement(resolved: Resolved, device: str) -> list[str]:
    config = resolved.config
    gpus = torch.cuda.device_count()
    in_cluster = bool(cluster_address(config.cluster))
    cores = None if in_cluster else os.cpu_count()
    # Without GPUs here the run is for a cluster, which will have those that it asks for.
    available = gpus if gpus and not in_cluster else math.inf
    placement = choose_placement(resolved, device, resolved.needs_engines, available, cores)
    needed = demand(resolved, placement, engines=resolved.needs_engines)
    lines = [f"placement     {needed} on {device}"]
    if resolved.needs_engines:
        lines.append(f"{INDENT}{placement}")
    if needed.gpus > gpus:
        lines.append(
            f"{INDENT}this machine alone has {gpus} GPUs: the run needs a cluster "
            "(RAY_ADDRESS or cluster.address)"
        )
    require(
        needed.cpus <= (config.cluster.num_cpus or needed.cpus),
        f"The run asks for {needed}, but cluster.num_cpus={config.cluster.num_cpus}: "
        "it can never be placed; raise cluster.num_cpus or lower learner.num_workers or rollout.num_engines.",
    )
    return lines


def _stages(config: Config, algorithm: Algorithm) -> list[Stage]:
    """The stages of the algorithm over all steps of the run, in order."""
    steps = config.trainer.steps
    stages = [algorithm.stage(step, steps) for step in range(steps)]
    return list({stage.start: stage for stage in stages}.values())


def _tokens(config: Config, stages: list[Stage], rows: int) -> list[str]:
    prompts = sum(stage.steps * stage_size(config.trainer, stage) for stage in stages)
    lines = [
        f"data          {rows} rows: {config.trainer.steps} steps with {prompts} prompts are "
        f"{prompts / rows:.2f} epochs"
    ]
    for stage in stages:
        which = f" of the {stage.steps} steps of {stage.algorithm.name}" if len(stages) > 1 else ""
        lines.append(f"per step      {_step_tokens(config, stage)}{which}")
    return lines


def _step_tokens(config: Config, stage: Stage) -> str:
    response = config.rollout.max_new_tokens
    rollouts, demonstrations = sequences(config, stage)
    trained = (rollouts + demonstrations) * config.model.max_length
    return (
        f"{rollouts} rollouts of at most {response} tokens ({rollouts * response:,} generated), at most "
        f"{demonstrations} demonstrations; at most {trained:,} tokens trained on"
    )


def _memory(resolved: Resolved, device: str, parameters: int | None, trained: int | None) -> list[str]:
    """Memory of model states per learner under ZeRO (arXiv 1910.02054, section 3), and of weights per engine.

    Activations are not counted.

    Args:
        trained: numbers that are trained: all parameters, or those of adapters, which only the model shows.
    """
    if not parameters:
        return ["memory        unknown: set model.num_parameters"]
    if not trained:
        return ["memory        unknown: which layers get adapters is seen where the model is"]
    config = resolved.config
    learners = resolved.learners.low
    zero_stage = config.learner.zero_stage
    width = parameter_bytes(config, device)
    # ZeRO divides the optimizer's state from stage 1, gradients from stage 2, and weights from stage 3.
    weights = parameters * width / (learners if zero_stage == 3 else 1)
    gradients = trained * GRADIENT_BYTES / (learners if zero_stage >= 2 else 1)
    # AdamW keeps two float32 moments, and with 16-bit weights a float32 copy of them.
    # DeepSpeed's optimizer for bfloat16 divides its state in every stage.
    divided = zero_stage >= 1 or width == 2
    optimizer = trained * (8 if width == 4 else 12) / (learners if divided else 1)
    states = (weights + gradients + optimizer) / GIB
    where = " (optimizer in CPU memory)" if config.learner.offload_optimizer else ""
    chunk_mb = config.learner.logit_chunk_mb
    logits = "logits of 384 tokens, or 64 MiB of them," if chunk_mb is None else f"{chunk_mb} MiB of logits"
    adapters = (
        f" and {trained / 1e6:,.2f} M of adapters, which are trained" if config.learner.lora.rank else ""
    )
    lines = [
        f"memory        {parameters / 1e6:,.1f} M parameters{adapters}; each learner {states:.2f} GiB of "
        f"weights, gradients and optimizer{where}, {logits} at a time"
    ]
    if resolved.algorithm.uses_reference:
        lines.append(f"{INDENT}each learner {weights / GIB:.2f} GiB for the reference model")
    if resolved.needs_engines:
        engine = parameters * width / config.rollout.tensor_parallel / GIB
        lines.append(f"{INDENT}each engine {engine:.2f} GiB of weights per device, the rest is its cache")
    return lines
