"""`srft-ray plan`: checks a config and says what it will ask for, by arithmetic alone; it starts nothing."""

import math
import os
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache

from algorithms import Algorithm, Stage
from srft_ray.commands.plan_memory import memory_lines
from srft_ray.commands.plan_time import sequences, time_lines
from srft_ray.config.load import to_yaml
from srft_ray.config.resolve import Resolved, resolve
from srft_ray.config.schedule import stage_size
from srft_ray.config.schema import Config
from srft_ray.errors import require
from srft_ray.models import is_local
from srft_ray.run.cluster import cluster_address
from srft_ray.run.device_memory import device_memory
from srft_ray.run.installation import check_installation
from srft_ray.run.memory import GIB
from srft_ray.run.memory_check import check_memory, model_shape, with_changes
from srft_ray.run.model_shape import ModelShape
from srft_ray.run.placement import Placement, choose_placement, demand, recomputes_activations
from srft_ray.run.preflight import check_without_model, prepare_run

ELSEWHERE = "is not on this machine"
WITHOUT_WEIGHTS = "has no weights"
MANY_EPOCHS = 100  # more are rarely meant
INDENT = " " * 14  # the width of the first column of the text


def describe(config: Config) -> str:
    """The resolved config, its placement, and tokens, memory and time per step, as text.

    It is noted in the text, and is no error, if a model that is named by its hub id is not on this machine,
    if its directory has no weights, or if this machine lacks the GPUs. So is what a run may do otherwise than
    its user expects.

    Raises:
        UserError: everything else that `train` would refuse.
    """
    resolved = resolve(config)
    config = resolved.config
    check_installation(config)
    missing = _missing(config.model.path)
    counts = check_without_model(resolved) if missing else prepare_run(resolved).train.counts
    rows = counts.kept
    shape = ModelShape(config.model.num_parameters or 0)
    if missing != ELSEWHERE:
        shape = model_shape(config)
    device = _device(config)
    placement = _choose_placement(resolved, device)
    memory = _device_memory(config, device)
    check_memory(resolved, placement, shape, memory)
    recomputed = recomputes_activations(config.learner, placement)
    timed = with_changes(resolved, "learner", {"activation_checkpointing": recomputed})
    stages = _stages(config, resolved.algorithm)
    unknown = ["memory        unknown: set model.num_parameters"]
    sections = [
        [to_yaml(config).rstrip(), ""],
        _placement(resolved, placement),
        _tokens(config, stages, rows),
        memory_lines(resolved, placement, shape, memory) if shape.parameters else unknown,
        time_lines(timed, stages, device, shape.parameters),
        [f"note          {note}" for note in _notes(config, stages, rows, missing)],
    ]
    return "\n".join(line for lines in sections for line in lines)


def _notes(config: Config, stages: list[Stage], rows: int, missing: str) -> list[str]:
    trainer = config.trainer
    notes = []
    if missing:
        what = " (a name without a directory is the id of a model on a hub)" if missing == ELSEWHERE else ""
        notes.append(f"{config.model.path} {missing}{what}: lengths in tokens were not checked")
    if config.evaluation.data and not trainer.evaluate_every:
        sets = ", ".join(config.evaluation.data)
        notes.append(f"trainer.evaluate_every=0: nothing is evaluated of the sets {sets}")
    if not trainer.checkpoint_every:
        notes.append("trainer.checkpoint_every=0: after a death of a learner the run begins anew")
    if _prompts(config, stages) > MANY_EPOCHS * rows:
        notes.append(f"each row is seen more than {MANY_EPOCHS} times: is data.path the whole data set?")
    return notes


def _device(config: Config) -> str:
    """The device of the run; with `run.device=auto`, the one that this machine has."""
    if config.run.device != "auto":
        return config.run.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _missing(path: str) -> str:
    """What this machine lacks of the model; empty if it has all of it."""
    if is_local(path):
        folder = Path(path).expanduser()
        weights_only = (folder / "config.json").is_file() and not any(folder.glob("*.safetensors"))
        return WITHOUT_WEIGHTS if weights_only else ""
    if "/" not in path or isinstance(try_to_load_from_cache(path, "config.json"), str):
        return ""
    return ELSEWHERE


def _choose_placement(resolved: Resolved, device: str) -> Placement:
    gpus = torch.cuda.device_count()
    in_cluster = bool(cluster_address(resolved.config.cluster))
    cores = None if in_cluster else os.cpu_count()
    # Without GPUs here the run is for a cluster, which will have those that it asks for.
    available = gpus if gpus and not in_cluster else math.inf
    return choose_placement(resolved, device, resolved.needs_engines, available, cores)


def _device_memory(config: Config, device: str) -> float | None:
    """As of `check_memory`; of GPUs that the config describes, if it does."""
    stated = config.hardware.gpu_memory_gib
    if device == "cuda" and stated:
        return stated * GIB
    return device_memory(device, bool(cluster_address(config.cluster)))


def _placement(resolved: Resolved, placement: Placement) -> list[str]:
    config = resolved.config
    gpus = torch.cuda.device_count()
    needed = demand(resolved, placement, engines=resolved.needs_engines)
    lines = [f"placement     {needed} on {placement.device}"]
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


def _prompts(config: Config, stages: list[Stage]) -> int:
    return sum(stage.steps * stage_size(config.trainer, stage) for stage in stages)


def _tokens(config: Config, stages: list[Stage], rows: int) -> list[str]:
    prompts = _prompts(config, stages)
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
