"""What a stage of an algorithm does at a step, by its own settings or the run's.

Data, preflight checks and learners all derive sizes and rates from here, so that they cannot disagree.
"""

import math
from typing import Any

from algorithms import Stage
from srft_ray.config.training import LearnerSection, TrainerSection


def stage_size(trainer: TrainerSection, stage: Stage) -> int:
    """Groups of each step of the stage."""
    return stage.schedule.groups_per_step or trainer.groups_per_step


def updates_per_step(learner: LearnerSection, stage: Stage) -> int:
    """Optimizer updates of each step of the stage: one for each mini-batch."""
    return stage.schedule.mini_batches or learner.mini_batches


def weight_decay(learner: LearnerSection, stage: Stage) -> float:
    """Weight decay of the stage's updates."""
    return _first(stage.schedule.weight_decay, learner.weight_decay)


def learning_rate(learner: LearnerSection, stage: Stage, step: int) -> float:
    """Rate of step `step`: linear warm-up, then constant, or down to lr · min_lr_ratio at the stage's end."""
    own, done = stage.schedule, step - stage.start
    peak = _first(own.lr, learner.lr)
    shape_name = _first(own.lr_schedule, learner.lr_schedule)
    warmup = learner.warmup_steps if own.warmup is None else round(own.warmup * stage.steps)
    if done < warmup:
        return peak * (done + 1) / warmup
    progress = (done - warmup) / max(1, stage.steps - warmup)
    shapes = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }
    shape = shapes[shape_name]
    floor = _first(own.min_lr_ratio, learner.min_lr_ratio) if shape_name != "constant" else 0.0
    return peak * (floor + (1.0 - floor) * shape)


def _first(own: Any, run: Any) -> Any:
    """The stage's own setting, or the run's if it has none."""
    return run if own is None else own
