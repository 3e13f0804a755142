"""`srft-ray plan`: checks a config and says what it will ask for, from arithmetic alone; starts nothing."""
import torch
from huggingface_hub import try_to_load_from_cache

from algorithms import Algorithm
from srft_ray.cluster import demand
from srft_ray.config import Config, require, to_yaml
from srft_ray.data.plan import make_plan, needs_engines, stage_size
from srft_ray.data.rows import read_rows
from srft_ray.models import count_parameters, is_local, resolve_dtype
from srft_ray.preflight import resolve, resolve_settings

GIB = 2**30


def describe(config: Config) -> str:
    """The resolved config, its placement, and tokens and memory per step, as text.

    A model that is named by hub id and is not on this machine, and GPUs that are not here, are said and not an error. UserError as
    `train` would for everything else.
    """
    algorithm = resolve_settings(config)
    parameters, note = config.model.num_parameters, []
    if _is_elsewhere(config.model.path):
        note = [f"note          model {config.model.path} is not on this machine: lengths in tokens were not checked"]
        rows = sum(1 for _ in read_rows(config.data, config.run.seed))
        make_plan(config, {}, algorithm)
    else:
        rows = resolve(config).train.counts.kept
        parameters = count_parameters(config)
    device = config.run.device if config.run.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    memory = _memory(config, algorithm, device, parameters) if parameters else ["memory        unknown: set model.num_parameters"]
    placement, tokens = _placement(config, algorithm, device), _tokens(config, algorithm, rows)
    return "\n".join([to_yaml(config).rstrip(), "", *placement, *tokens, *memory, *note])


def _is_elsewhere(path: str) -> bool:
    """Whether it is `owner/name` and not in the local hub cache."""
    return "/" in path and not is_local(path) and not isinstance(try_to_load_from_cache(path, "config.json"), str)


def _placement(config: Config, algorithm: Algorithm, device: str) -> list[str]:
    needed = demand(config, needs_engines(config, algorithm), device)
    gpus = torch.cuda.device_count()
    lines = [f"placement     {needed} on {device}"]
    if needed.gpus > gpus:
        lines.append(f"              this machine alone has {gpus} GPUs: it needs a cluster (RAY_ADDRESS or cluster.address)")
    require(needed.cpus <= (config.cluster.num_cpus or needed.cpus), f"The run asks for {needed}, but cluster.num_cpus={config.cluster.num_cpus}: "
            "it can never be placed; raise cluster.num_cpus or lower learner.num_workers or rollout.num_engines.")
    return lines


def _tokens(config: Config, algorithm: Algorithm, rows: int) -> list[str]:
    steps, response = config.trainer.steps, config.rollout.max_new_tokens
    stages = {stage.start: stage for stage in (algorithm.stage(step, steps) for step in range(steps))}
    prompts = sum(stage.steps * stage_size(config, stage) for stage in stages.values())
    lines = [f"data          {rows} rows: {steps} steps with {prompts} prompts are {prompts / rows:.2f} epochs"]
    for stage in stages.values():
        groups = stage_size(config, stage)
        rollouts = groups * config.rollout.num_rollouts if stage.algorithm.uses_rollouts else 0
        demonstrations = groups * config.data.max_demonstrations if stage.algorithm.uses_demonstrations else 0
        which = f" of the {stage.steps} steps of {stage.algorithm.name}" if len(stages) > 1 else ""
        lines.append(f"per step      {rollouts} rollouts of at most {response} tokens ({rollouts * response:,} generated), at most {demonstrations} "
                     f"demonstrations; at most {(rollouts + demonstrations) * config.model.max_length:,} tokens trained on{which}")
    return lines


def _memory(config: Config, algorithm: Algorithm, device: str, parameters: int) -> list[str]:
    """Model states per learner under ZeRO (arXiv 1910.02054, section 3), and weights per engine; activations not counted."""
    learners, stage = demand(config, False, device).learners, config.learner.zero_stage
    width = 4 if resolve_dtype(config, device) == "float32" else 2
    weights = parameters * width / (learners if stage == 3 else 1)
    gradients = parameters * width / (learners if stage >= 2 else 1)
    optimizer = parameters * (8 if width == 4 else 12) / (learners if stage >= 1 else 1)
    where = " (optimizer in CPU memory)" if config.learner.offload_optimizer else ""
    lines = [f"memory        {parameters / 1e6:,.1f} M parameters; each learner {(weights + gradients + optimizer) / GIB:.2f} GiB of weights, "
             f"gradients and optimizer{where}, {config.learner.logit_chunk_mb} MiB of logits at a time"]
    if "reference" in algorithm.needs:
        lines.append(f"              each learner {weights / GIB:.2f} GiB for the reference model")
    if needs_engines(config, algorithm):
        engine = parameters * width / config.rollout.tensor_parallel / GIB
        lines.append(f"              each engine {engine:.2f} GiB of weights per device, the rest is its cache")
    return lines
