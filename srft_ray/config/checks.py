"""What must hold for a config by itself, before files, models and machines are looked at."""

import dataclasses
from typing import Any

from srft_ray.config.rollout import RolloutSection
from srft_ray.config.schema import Config, EvaluationSection, ModelSection
from srft_ray.config.settings import Bounds, check_limits
from srft_ray.config.training import LearnerSection, LoraSection, TrainerSection
from srft_ray.errors import require


def check_values(config: Config) -> None:
    """Raises UserError for the first value that is outside its limits or does not fit another value."""
    for name, section in vars(config).items():
        if dataclasses.is_dataclass(section):
            _check_section(name, section)
    _check_workers(config)
    _check_turns(config)
    _check_updates_in_flight(config.rollout)
    _check_checkpoints(config.trainer, config.evaluation)
    _check_optimizer(config.learner)
    _check_adapters(config.learner.lora)
    _check_sampling(config.rollout, config.evaluation, config.model)


def _check_section(name: str, section: Any) -> None:
    for item in dataclasses.fields(section):
        key, value = f"{name}.{item.name}", getattr(section, item.name)
        if dataclasses.is_dataclass(value):
            _check_section(key, value)
        else:
            check_limits(key, value, item.metadata["limits"])


def learner_bounds(learner: LearnerSection) -> Bounds:
    return Bounds.parse(learner.num_workers, "learner.num_workers")


def engine_bounds(rollout: RolloutSection) -> Bounds:
    return Bounds.parse(rollout.num_engines, "rollout.num_engines")


def _check_workers(config: Config) -> None:
    engine_bounds(config.rollout)
    groups = config.trainer.groups_per_step
    for workers in learner_bounds(config.learner):
        require(
            groups % workers == 0,
            f"trainer.groups_per_step={groups} is not divisible by {workers} learners "
            f"(learner.num_workers={config.learner.num_workers}): choose a multiple.",
        )


def _check_turns(config: Config) -> None:
    staleness = config.rollout.max_staleness
    require(
        config.cluster.placement != "colocated" or staleness == 0,
        f"cluster.placement=colocated lets learners and engines take turns, but with "
        f"rollout.max_staleness={staleness} they work at the same time: set rollout.max_staleness=0 or "
        "cluster.placement=separate.",
    )


def _check_updates_in_flight(rollout: RolloutSection) -> None:
    require(
        rollout.max_staleness > 0 or not rollout.in_flight,
        "rollout.in_flight has nothing to load with rollout.max_staleness=0, where engines wait for the "
        "learners: set rollout.max_staleness=1 or rollout.in_flight=false.",
    )


def _check_checkpoints(trainer: TrainerSection, evaluation: EvaluationSection) -> None:
    best = trainer.keep_best
    adds = trainer.keep_every or (best and trainer.patience is None)
    require(
        trainer.keep_checkpoints is not None or not adds,
        "trainer.keep_every and trainer.keep_best add to trainer.keep_checkpoints: set that too.",
    )
    require(
        best is None or best in evaluation.data or "/" in best,
        f"trainer.keep_best={best} is neither a set of evaluation.data nor a metric such as reward/mean.",
    )
    band = trainer.keep_best_band
    if trainer.keep_best_mode == "band":
        is_band = len(band) == 2 and band[0] <= band[1]
        require(is_band, f"trainer.keep_best_mode=band needs keep_best_band=[low, high], not {band}.")
    else:
        require(not band, f"trainer.keep_best_band={band} needs trainer.keep_best_mode=band.")
    if trainer.patience is not None:
        _check_patience(trainer, evaluation)


def _check_patience(trainer: TrainerSection, evaluation: EvaluationSection) -> None:
    best = trainer.keep_best
    require(
        best is not None and (best in evaluation.data or best.startswith("eval/")),
        f"trainer.patience compares evaluations, and trainer.keep_best={best} is no figure of one: set it to "
        "a set of evaluation.data, or to a figure such as eval/heldout/demo_loss.",
    )
    evaluate, save = trainer.evaluate_every, trainer.checkpoint_every
    require(
        evaluate > 0 and save > 0 and evaluate % save == 0,
        "trainer.patience needs a checkpoint of every evaluation: set trainer.evaluate_every, and "
        f"trainer.checkpoint_every to a divisor of it (they are {evaluate} and {save}).",
    )


def _check_optimizer(learner: LearnerSection) -> None:
    require(
        len(learner.betas) == 2 and all(0 <= beta < 1 for beta in learner.betas),
        f"learner.betas must be two numbers in [0, 1), not {learner.betas}.",
    )


def _check_adapters(lora: LoraSection) -> None:
    require(
        lora.rank is not None or lora == LoraSection(),
        "learner.lora.alpha and learner.lora.targets are of adapters, and there are none without a rank: set "
        "learner.lora.rank too.",
    )


def _check_sampling(rollout: RolloutSection, evaluation: EvaluationSection, model: ModelSection) -> None:
    require(
        rollout.top_p == 1.0,
        f"rollout.top_p={rollout.top_p} would train on log-probs of another distribution than the policy's: "
        "training rollouts need top_p=1.0 (evaluation.top_p is free).",
    )
    require(
        rollout.environment is None or rollout.stop,
        "rollout.environment needs rollout.stop: the texts at which a turn ends, such as [</tool>].",
    )
    require(all(rollout.stop), "rollout.stop has an empty text, at which every response would end.")
    require(0 < evaluation.top_p <= 1, f"evaluation.top_p must be in (0, 1], not {evaluation.top_p}.")
    require(
        rollout.max_new_tokens < model.max_length,
        f"rollout.max_new_tokens={rollout.max_new_tokens} leaves no room for a prompt in "
        f"model.max_length={model.max_length}: lower the one or raise the other.",
    )
