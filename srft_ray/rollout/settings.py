"""What an actor of the pool is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srft_ray.config.evaluation import EvaluationSetSection
from srft_ray.config.rollout import RolloutSection
from srft_ray.config.schema import ModelSection, VerifierSection
from srft_ray.config.training import LoraSection


@dataclass(frozen=True)
class RolloutSettings:
    """What it needs of the config and of the placement.

    Attributes:
        max_staleness: versions that a training rollout may be behind when it starts.
        evaluation: how each evaluation set is sampled and judged.
        verifier_function: a verifier given from Python, in the place of the section's.
        threads: of the engine on CPU; None for as many as Ray gives the actor.
        lora: the adapter that the learners publish; None if they publish all weights.
        run_dir: of the run whose timeline shows the start of the engine; None for none.
        beside_cache: bytes of a GPU that the engine shares with a learner, and needs for everything but its
            cache; None where it has a GPU for itself.
    """

    seed: int
    device: str
    dtype: str
    model: ModelSection
    rollout: RolloutSection
    evaluation: Mapping[str, EvaluationSetSection]
    verifier: VerifierSection
    max_staleness: int
    verifier_function: Callable[..., Any] | None = None
    threads: int | None = None
    lora: LoraSection | None = None
    run_dir: Path | None = None
    beside_cache: int | None = None
