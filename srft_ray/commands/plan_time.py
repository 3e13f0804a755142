"""The time of a step and the best split of the devices, from the figures in the `hardware` section."""

from algorithms import Stage
from srft_ray.commands.pipeline_model import PhaseTimeModel, PipelineModel, Setting, best_split, splits
from srft_ray.commands.simulation.load import CALL_S, calls_per_s
from srft_ray.config.resolve import Resolved
from srft_ray.config.schedule import stage_size, updates_per_step
from srft_ray.config.schema import Config
from srft_ray.models import resolve_dtype
from srft_ray.run.placement import Placement, demand, gpus_per_engine
from srft_ray.run.preflight import plan_stream


def time_lines(resolved: Resolved, stages: list[Stage], device: str, parameters: int | None) -> list[str]:
    """Lines of text: for each stage seconds per step, and the best split of as many devices as the run asks
    for.

    If figures are missing, it is one line that names them.
    """
    config = resolved.config
    stated = {key: value for key, value in vars(config.hardware).items() if key != "gpu_memory_gib"}
    missing = [f"hardware.{name}" for name, value in stated.items() if value is None]
    if missing or not parameters:
        needed_keys = ", ".join(missing) or "model.num_parameters"
        return [f"time          unknown: for seconds per step and the best split state {needed_keys}"]
    needed = demand(resolved, Placement(device), engines=resolved.needs_engines)
    share = gpus_per_engine(config.rollout) if device == "cuda" else 1.0
    setting = Setting(max(1, needed.engines), needed.learners, config.rollout.max_staleness)
    devices = needed.learners + needed.engines * share
    lines = []
    for stage in stages:
        model = stated_model(config, stage, device, parameters)
        which = f", of {stage.algorithm.name}" if len(stages) > 1 else ""
        lines.append(f"{_seconds(model, setting)}{which}")
        if stage.algorithm.uses_rollouts:
            lines.append(_coordinator(resolved, setting, model.step_times(setting).step_s))
        # The staleness of the config, and 1, the smallest with which generation and learning overlap.
        levels = dict.fromkeys((setting.staleness, 1)) if stage.algorithm.uses_rollouts else ()
        for staleness in levels:
            best = best_split(model, splits(devices, staleness, stage_size(config.trainer, stage), share))
            lines.append(
                f"best split of {devices:g} devices: {best.engines} engines and {best.learners} learners, "
                f"{_seconds(model, best)}"
            )
    lines.append("(from the figures stated under hardware; the split does not consider memory)")
    return [f"{'' if index else 'time':14}{line}" for index, line in enumerate(lines)]


def _coordinator(resolved: Resolved, setting: Setting, step_s: float) -> str:
    """What the run asks of its coordinator."""
    blocks = plan_stream(resolved, {}).blocks_per_step
    calls = calls_per_s(setting, blocks, step_s, resolved.config.rollout.stall_timeout_s)
    share = calls * CALL_S
    return f"coordinator: {calls:,.0f} calls/s, about {share:.0%} of a CPU core"


def _seconds(model: PipelineModel, setting: Setting) -> str:
    times = model.step_times(setting)
    return (
        f"{times.step_s:.1f} s per step with staleness {setting.staleness}, bound by {times.bottleneck} "
        f"(generation {times.generation_s:.1f}, learner {times.learner_s:.1f}, "
        f"publish {times.publish_s:.1f}, overhead {times.overhead_s:.1f})"
    )


def stated_model(config: Config, stage: Stage, device: str, parameters: int) -> PipelineModel:
    """The pipeline model of a stage from `config.hardware`, all of whose figures must be given.

    - Learner: 6 operations per parameter and token, prompts included, and 2 more for each further forward
      pass. The operations of attention itself are not counted.
    - Generation: the generated tokens divided by the throughput of all engines, plus the time of the longest
      response, which is generated at the end, when the batch is no longer full.
    - Weights are transferred twice: from the learners (publish), and to the engines (overhead, which
      overlaps with no other phase).
    """
    rollouts, demonstrations = sequences(config, stage)
    nothing = PhaseTimeModel()
    learner = PhaseTimeModel(
        parallel_s=_learner_seconds(config, stage, parameters, rollouts + demonstrations)
    )
    if not rollouts:
        return PipelineModel(nothing, learner, nothing, nothing, nothing)
    stated = config.hardware
    longest_s = config.rollout.max_new_tokens * stated.engine_token_ms / 1e3
    throughput_s = rollouts * stated.mean_response_tokens / stated.engine_tokens_per_s
    generation = PhaseTimeModel(longest_s, throughput_s)
    weight_bytes = parameters * parameter_bytes(config, device)
    transfer = PhaseTimeModel(weight_bytes / (stated.network_gb_per_s * 1e9))
    return PipelineModel(
        generation, learner, publish=transfer, overhead=transfer, overlapped_overhead=transfer
    )


def _learner_seconds(config: Config, stage: Stage, parameters: int, number: int) -> float:
    """The seconds that one learner needs for a step with so many sequences."""
    stated = config.hardware
    further_passes = (
        bool(config.learner.activation_checkpointing),
        stage.algorithm.uses_reference,
        "sequence_logprobs" in stage.algorithm.needs,
        updates_per_step(config.learner, stage) > 1 or "mean_entropy" in stage.algorithm.needs,
    )
    # Per parameter and token. A critic makes a pass of its own, and an update.
    operations = 6 + 2 * sum(further_passes) + 8 * stage.algorithm.uses_critic
    tokens = number * (stated.mean_prompt_tokens + stated.mean_response_tokens)
    return operations * parameters * tokens / (stated.learner_tflops * 1e12 * stated.utilization)


def sequences(config: Config, stage: Stage) -> tuple[int, int]:
    """(rollouts, largest possible number of demonstrations) of one step of the stage."""
    groups = stage_size(config.trainer, stage)
    rollouts = groups * config.rollout.num_rollouts if stage.algorithm.uses_rollouts else 0
    demonstrations = groups * config.data.max_demonstrations if stage.algorithm.uses_demonstrations else 0
    return rollouts, demonstrations


def parameter_bytes(config: Config, device: str) -> int:
    """Bytes of one parameter."""
    return 4 if resolve_dtype(config.model, device) == "float32" else 2
