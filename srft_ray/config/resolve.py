"""A config that fits together: everything that the config alone shows to be wrong is refused here.

What files, models, clusters and earlier runs show to be wrong is refused by `run/preflight`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from algorithms import Algorithm, Stage
from srft_ray.config.algorithm import check_terms, make_algorithm, settings_of
from srft_ray.config.checks import engine_bounds, learner_bounds
from srft_ray.config.evaluation import EvaluationSetSection, evaluation_sets
from srft_ray.config.formats import data_format
from srft_ray.config.schedule import stage_size, updates_per_step
from srft_ray.config.schema import Config
from srft_ray.config.settings import Bounds
from srft_ray.errors import UserError, require

MOST_ROLLOUTS = 255  # of a prompt in a step, that its history counts (`data.history.VISIT`)
PYTHON_VERIFIER = "python:"  # begins `verifier.name` in the resolved config of a run with a Python callable


@dataclass(frozen=True)
class TokenLimits:
    """Tokens that fit: of a prompt, and of a prompt with a demonstration."""

    prompt: int
    sequence: int


@dataclass(frozen=True)
class Resolved:
    """A config whose parts fit together.

    Attributes:
        config: a copy of the caller's with absolute paths, the verifier's name, and all settings of the
            algorithm.
        algorithm: made from the config's section, or given by the caller.
        learners, engines: how many there may be.
        evaluation: what each evaluation set is, and how it is sampled and judged.
        verifier: given by the caller, in the place of the config's `verifier.name` and `verifier.path`.
    """

    config: Config
    algorithm: Algorithm
    learners: Bounds
    engines: Bounds
    evaluation: dict[str, EvaluationSetSection]
    verifier: Callable[..., Any] | None = None

    @property
    def run_dir(self) -> Path:
        return self.config.run_dir

    @property
    def needs_engines(self) -> bool:
        """Rollouts, and evaluation during training, are sampled by engines."""
        return self.algorithm.uses_rollouts or self.config.trainer.evaluate_every > 0

    @property
    def token_limits(self) -> TokenLimits:
        """The same for every algorithm, so that all of them see the same prompts in the same order."""
        return self.limits(self.config.rollout.max_new_tokens)

    def limits(self, max_new_tokens: int) -> TokenLimits:
        """What fits beside responses of so many tokens."""
        longest = self.config.model.max_length
        return TokenLimits(longest - max_new_tokens, longest)


def resolve(
    config: Config, algorithm: Algorithm | None = None, verifier: Callable[..., Any] | None = None
) -> Resolved:
    """Checks the parts of a config against each other; the caller's config is not changed.

    Args:
        algorithm: takes the place of the config's `algorithm` section.
        verifier: takes the place of `verifier.name` and `verifier.path`; its name is recorded as
            `verifier.name`.

    Raises:
        UserError: one sentence for the first thing that is wrong.
    """
    config = copy.deepcopy(config)
    _make_paths_absolute(config)
    if verifier is not None:
        config.verifier.path = None
        config.verifier.name = _recorded_name(verifier)
    elif config.verifier.path is None and config.verifier.name == "auto":
        config.verifier.name = "tasks" if data_format(config.data) == "tasks" else "math"
    evaluation = evaluation_sets(config)
    require(
        config.learner.zero_stage > 0 or not config.learner.offload_optimizer,
        "learner.offload_optimizer needs learner.zero_stage 1, 2 or 3: ZeRO 0 has no partitioned optimizer.",
    )
    section = {} if algorithm else config.algorithm
    algorithm = algorithm or make_algorithm(section)
    check_terms(algorithm)
    config.algorithm = settings_of(algorithm, section)
    _check_stages(config, algorithm)
    learners = learner_bounds(config.learner)
    engines = engine_bounds(config.rollout)
    return Resolved(config, algorithm, learners, engines, evaluation, verifier)


def _recorded_name(verifier: Callable[..., Any]) -> str:
    """What stands for a callable in the resolved config, so that a run is not continued with another
    verifier."""
    require(
        callable(verifier),
        f"verifier is {verifier!r}: pass a callable that takes (response, reference, metadata) or "
        "(response, reference), or name one in the config as verifier.path=file.py:function.",
    )
    kind = type(verifier)
    module = getattr(verifier, "__module__", None) or kind.__module__
    name = getattr(verifier, "__qualname__", kind.__qualname__)
    return f"{PYTHON_VERIFIER}{module}.{name}"


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _make_paths_absolute(config: Config) -> None:
    """Ray's workers run in other directories than the driver. An id on a hub stays what it is."""
    config.run.dir = _absolute(config.run.dir)
    if config.trainer.checkpoint_path and "://" not in config.trainer.checkpoint_path:
        config.trainer.checkpoint_path = _absolute(config.trainer.checkpoint_path)
    if Path(config.model.path).expanduser().exists():
        config.model.path = _absolute(config.model.path)
    if data_format(config.data) != "tasks":
        config.data.path = _absolute(config.data.path)
    for key in ("reference", "critic"):
        path = getattr(config.learner, key)
        if path and Path(path).expanduser().exists():
            setattr(config.learner, key, _absolute(path))
    if config.verifier.path:
        config.verifier.path = _absolute(config.verifier.path)
    if config.rollout.environment:
        config.rollout.environment = _absolute(config.rollout.environment)
    if ":" in config.rollout.transport:
        config.rollout.transport = _absolute(config.rollout.transport)
    if isinstance(config.algorithm.get("path"), str):
        config.algorithm["path"] = _absolute(config.algorithm["path"])


def _check_correction(algorithm: Algorithm) -> None:
    """Raises UserError for one that trains on rollouts as if the policy that is trained had sampled them."""
    require(
        algorithm.corrects_rollouts or not algorithm.uses_rollouts,
        f"rollout.in_flight lets several policies sample a response, and {algorithm.name} does not correct "
        "for their difference to the one that is trained: set rollout.in_flight=false, or, if the algorithm "
        "has them, its settings old=behavior, or old=learner and correction=token_tis.",
    )


def _check_stages(config: Config, algorithm: Algorithm) -> None:
    """Raises UserError for a stage that its own settings and the run's do not allow."""
    steps = config.trainer.steps
    try:
        stages = [algorithm.stage(step, steps) for step in (0, steps - 1)]
    except ValueError as error:
        raise UserError(f"The settings of algorithm do not fit trainer.steps: {error}.") from error
    require(
        config.trainer.patience is None or stages[0].start == stages[1].start,
        f"trainer.patience would end {algorithm.name} in its first stage or undo its second: train the first "
        "stage with it as a run of its own, and go on from its model (`after` in `srft-ray compare`).",
    )
    for stage in stages:
        name = stage.algorithm.name
        size = stage_size(config.trainer, stage)
        updates = updates_per_step(config.learner, stage)
        require(
            size % updates == 0,
            f"{updates} mini-batches do not divide the {size} groups per step of {name}: choose a divisor.",
        )
        require(
            config.rollout.num_rollouts >= stage.algorithm.min_rollouts,
            f"{name} compares the rollouts of a prompt with each other: set rollout.num_rollouts to at least "
            f"{stage.algorithm.min_rollouts}.",
        )
        if config.rollout.in_flight:
            _check_correction(stage.algorithm)
        require(
            stage.algorithm.uses_rollouts or not stage.algorithm.uses_history,
            f"{name} chooses prompts by the history of their rollouts, and samples none: set uses_rollouts.",
        )
        require(
            config.rollout.num_rollouts <= MOST_ROLLOUTS or not stage.algorithm.uses_history,
            f"{name} uses the history of prompts, which counts at most {MOST_ROLLOUTS} rollouts: lower "
            "rollout.num_rollouts.",
        )
        require(
            stage.algorithm.uses_history or not stage.algorithm.replay_age,
            f"{name} replays rollouts of earlier steps, and the history of prompts names them: set "
            "uses_history.",
        )
        require(
            not stage.algorithm.buffer_size or stage.algorithm.buffered().needs <= {"entropy_gradient"},
            f"{name} trains on buffered demonstrations with terms that need more than the gradient of "
            "entropies: leave these terms out of `buffered`.",
        )
    if stages[-1].start > 0:
        _check_second_stage(config, *stages)


def _check_second_stage(config: Config, first: Stage, second: Stage) -> None:
    """Raises UserError for models beside the policy that would not begin as the one the first stage ends
    with."""
    name = second.algorithm.name
    require(
        not second.algorithm.uses_reference
        or second.algorithm.reference_rate(0) == 1
        or config.learner.reference is not None,
        f"The second stage, {name}, uses a reference model, and it would be the model before the first "
        "stage: set learner.reference.",
    )
    require(
        not second.algorithm.uses_critic or first.algorithm.uses_critic or config.learner.critic is not None,
        f"The second stage, {name}, uses a critic, and it would begin as the model before the first stage: "
        "set learner.critic, or train the first stage as a run of its own and go on from its model.",
    )
