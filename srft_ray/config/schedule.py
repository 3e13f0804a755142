"""What a stage of an algorithm does at a step, by its own settings or the run's: how many groups and updates, and at which rate."""

import math
from typing import Any

from algorithms import Stage
from srft_ray.config.schema import Config, LearnerSection


def stage_size(config: Config, stage: Stage) -> int:
    """Groups of each step of the stage."""
    return stage.schedule.groups_per_step or config.trainer.groups_per_step


def updates_per_step(learner: LearnerSection, stage: Stage) -> int:
    return stage.schedule.mini_batches or learner.mini_batches


def learning_rate(config: LearnerSection, stage: Stage, step: int) -> float:
    """Rate of step `step`: linear warm-up, then constant, or down to lr · min_lr_ratio at the stage's end."""
    own, done = stage.schedule, step - stage.start
    peak, shape_name = _first(own.lr, config.lr), _first(own.lr_schedule, config.lr_schedule)
    warmup = config.warmup_steps if own.warmup is None else round(own.warmup * stage.steps)
    if done < warmup:
        return peak * (done + 1) / warmup
    progress = (done - warmup) / max(1, stage.steps - warmup)
    shape = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}[
        shape_name
    ]
    floor = _first(own.min_lr_ratio, config.min_lr_ratio) if shape_name != "constant" else 0.0
    return peak * (floor + (1.0 - floor) * shape)


def _first(own: Any, run: Any) -> Any:
    return run if own is None else own
