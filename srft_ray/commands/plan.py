"""`srft-ray plan`: checks a config and says what it will ask for, from arithmetic alone; starts nothing."""

import torch
from huggingface_hub import try_to_load_from_cache

from algorithms import Algorithm, Stage
from srft_ray.commands.pipeline_model import Law, PipelineModel, Setting, best_split, splits
from srft_ray.config.schedule import stage_size, updates_per_step
from srft_ray.config.schema import Config, require, to_yaml
from srft_ray.data.plan import make_plan, needs_engines
from srft_ray.data.rows import read_rows
from srft_ray.data.stream import engine_gpus
from srft_ray.models import count_parameters, is_local, resolve_dtype
from srft_ray.run.cluster import demand
from srft_ray.run.preflight import resolve, resolve_settings

GIB = 2**30


def describe(config: Config) -> str:
    """The resolved config, its placement, and tokens and memory per step, as text.

    A model that is named by hub id and is not on this machine, and GPUs that are not here, are said and not an error. UserError as
    `train` would for everything else.
    """
    algorithm = resolve_settings(config)
    parameters, note = config.model.num_parameters, []
    if _is_elsewhere(config.model.path):
        note = [
            f"note          model {config.model.path} is not on this machine: lengths in tokens were not checked"
        ]
        rows = sum(1 for _ in read_rows(config.data, config.run.seed))
        make_plan(config, {}, algorithm)
    else:
        rows = resolve(config).train.counts.kept
        parameters = count_parameters(config)
    device = (
        config.run.device if config.run.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    )
    memory = (
        _memory(config, algorithm, device, parameters)
        if parameters
        else ["memory        unknown: set model.num_parameters"]
    )
    placement, tokens = _placement(config, algorithm, device), _tokens(config, algorithm, rows)
    return "\n".join(
        [
            to_yaml(config).rstrip(),
            "",
            *placement,
            *tokens,
            *memory,
            *_time(config, algorithm, device, parameters),
            *note,
        ]
    )


def _is_elsewhere(path: str) -> bool:
    """Whether it is `owner/name` and not in the local hub cache."""
    return (
        "/" in path
        and not is_local(path)
        and not isinstance(try_to_load_from_cache(path, "config.json"), str)
    )


def _placement(config: Config, algorithm: Algorithm, device: str) -> list[str]:
    needed = demand(config, needs_engines(config, algorithm), device)
    gpus = torch.cuda.device_count()
    lines = [f"placement     {needed} on {device}"]
    if needed.gpus > gpus:
        lines.append(
            f"              this machine alone has {gpus} GPUs: it needs a cluster (RAY_ADDRESS or cluster.address)"
        )
    require(
        needed.cpus <= (config.cluster.num_cpus or needed.cpus),
        f"The run asks for {needed}, but cluster.num_cpus={config.cluster.num_cpus}: "
        "it can never be placed; raise cluster.num_cpus or lower learner.num_workers or rollout.num_engines.",
    )
    return lines


def _tokens(config: Config, algorithm: Algorithm, rows: int) -> list[str]:
    response = config.rollout.max_new_tokens
    stages = _stages(config, algorithm)
    prompts = sum(stage.steps * stage_size(config, stage) for stage in stages)
    lines = [
        f"data          {rows} rows: {config.trainer.steps} steps with {prompts} prompts are {prompts / rows:.2f} epochs"
    ]
    for stage in stages:
        rollouts, demonstrations = _sequences(config, stage)
        which = f" of the {stage.steps} steps of {stage.algorithm.name}" if len(stages) > 1 else ""
        lines.append(
            f"per step      {rollouts} rollouts of at most {response} tokens ({rollouts * response:,} generated), at most {demonstrations} "
            f"demonstrations; at most {(rollouts + demonstrations) * config.model.max_length:,} tokens trained on{which}"
        )
    return lines


def _stages(config: Config, algorithm: Algorithm) -> list[Stage]:
    steps = config.trainer.steps
    return list(
        {stage.start: stage for stage in (algorithm.stage(step, steps) for step in range(steps))}.values()
    )


def _sequences(config: Config, stage: Stage) -> tuple[int, int]:
    """Rollouts, and at most so many demonstrations, of one step."""
    groups = stage_size(config, stage)
    return (
        groups * config.rollout.num_rollouts if stage.algorithm.uses_rollouts else 0,
        groups * config.data.max_demonstrations if stage.algorithm.uses_demonstrations else 0,
    )


def _memory(config: Config, algorithm: Algorithm, device: str, parameters: int) -> list[str]:
    """Model states per learner under ZeRO (arXiv 1910.02054, section 3), and weights per engine; activations not counted."""
    learners, stage = demand(config, False, device).learners, config.learner.zero_stage
    width = _width(config, device)
    weights = parameters * width / (learners if stage == 3 else 1)
    gradients = parameters * width / (learners if stage >= 2 else 1)
    optimizer = parameters * (8 if width == 4 else 12) / (learners if stage >= 1 else 1)
    where = " (optimizer in CPU memory)" if config.learner.offload_optimizer else ""
    lines = [
        f"memory        {parameters / 1e6:,.1f} M parameters; each learner {(weights + gradients + optimizer) / GIB:.2f} GiB of weights, "
        f"gradients and optimizer{where}, {config.learner.logit_chunk_mb} MiB of logits at a time"
    ]
    if "reference" in algorithm.needs:
        lines.append(f"              each learner {weights / GIB:.2f} GiB for the reference model")
    if needs_engines(config, algorithm):
        engine = parameters * width / config.rollout.tensor_parallel / GIB
        lines.append(
            f"              each engine {engine:.2f} GiB of weights per device, the rest is its cache"
        )
    return lines


def _time(config: Config, algorithm: Algorithm, device: str, parameters: int | None) -> list[str]:
    """Seconds of a step and the best split of as many devices, from the stated hardware figures."""
    missing = [f"hardware.{name}" for name, value in vars(config.hardware).items() if value is None]
    if missing or not parameters:
        return [
            f"time          unknown: for seconds per step and the best split state {', '.join(missing) or 'model.num_parameters'}"
        ]
    needed, stages, lines = (
        demand(config, needs_engines(config, algorithm), device),
        _stages(config, algorithm),
        [],
    )
    share = engine_gpus(config) if device == "cuda" else 1.0
    setting, devices = (
        Setting(max(1, needed.engines), needed.learners, config.rollout.max_staleness),
        needed.learners + needed.engines * share,
    )
    for stage in stages:
        model = stated_model(config, stage, device, parameters)
        lines.append(f"{_seconds(model, setting)}{f', of {stage.algorithm.name}' if len(stages) > 1 else ''}")
        for staleness in dict.fromkeys((setting.staleness, 1)) if stage.algorithm.uses_rollouts else ():
            best = best_split(model, splits(devices, staleness, stage_size(config, stage), share))
            lines.append(
                f"best split of {devices:g} devices: {best.engines} engines and {best.learners} learners, {_seconds(model, best)}"
            )
    return [
        f"{'' if index else 'time':14}{line}"
        for index, line in enumerate([*lines, "(from the figures stated under hardware; memory aside)"])
    ]


def _seconds(model: PipelineModel, setting: Setting) -> str:
    stages = model.stages(setting)
    return (
        f"{stages.step_s:.1f} s per step with staleness {setting.staleness}, bound by {stages.bottleneck} (generation {stages.generation_s:.1f}, "
        f"learner {stages.learner_s:.1f}, publish {stages.publish_s:.1f}, overhead {stages.overhead_s:.1f})"
    )


def stated_model(config: Config, stage: Stage, device: str, parameters: int) -> PipelineModel:
    """The pipeline model from config.hardware, all of whose figures are given.

    The learner: 6 operations per parameter and token, prompts included, 2 more for each further forward pass; attention's own are
    not counted. Generation: tokens over engines, and the longest response at the end, when the batch is no longer full. Weights
    travel twice: from the learners (publish), and to the engines (overhead, which overlaps with nothing).
    """
    stated, (rollouts, demonstrations) = config.hardware, _sequences(config, stage)
    passes = (
        config.learner.activation_checkpointing,
        "reference" in stage.algorithm.needs,
        updates_per_step(config.learner, stage) > 1 or "mean_entropy" in stage.algorithm.needs,
    )
    tokens = (rollouts + demonstrations) * (stated.mean_prompt_tokens + stated.mean_response_tokens)
    learner = (
        (6 + 2 * sum(passes)) * parameters * tokens / (stated.learner_tflops * 1e12 * stated.utilization)
    )
    if not rollouts:
        return PipelineModel(Law(), Law(shared=learner), Law(), Law(), Law())
    longest = config.rollout.max_new_tokens * stated.engine_token_ms / 1e3
    generation = Law(longest, rollouts * stated.mean_response_tokens / stated.engine_tokens_per_s)
    transfer = Law(parameters * _width(config, device) / (stated.network_gb_per_s * 1e9))
    return PipelineModel(generation, Law(shared=learner), transfer, transfer, transfer)


def _width(config: Config, device: str) -> int:
    """Bytes of a parameter."""
    return 4 if resolve_dtype(config, device) == "float32" else 2
