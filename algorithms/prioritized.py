"""GRPO with prompts chosen by difficulty: those that the policy fails on are trained on more often."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.settings import limited
from algorithms.types import Visit


@dataclass(frozen=True)
class PrioritizedGRPO(GRPO):
    """GRPO with prioritized sampling: a prompt is trained on with a probability proportional to 1 - s

    s is the success rate of the prompt over its newest visits. A prompt in the seeded order is kept with
    probability max(1 - s, `least_probability`), else another is tried; prompts without a visit are kept. This
    is the sampling of Kimi k1.5, whose loss (`opmd`) and curriculum by given levels of difficulty are not
    part of it. That s is over the newest visits only, and the least probability, are choices.
    """

    name: ClassVar[str] = "grpo_prioritized"
    paper: ClassVar[str] = "sampling of arXiv 2501.12599 (Kimi k1.5)"
    uses_history: ClassVar[bool] = True
    old: Old = "learner"
    least_probability: float = limited(0.05, least=0, most=1)

    def keeps(self, visits: Sequence[Visit], step: int, rng: random.Random) -> bool:
        rollouts = sum(visit.rollouts for visit in visits)
        if not rollouts:
            return True
        success = sum(visit.correct for visit in visits) / rollouts
        return rng.random() < max(1 - success, self.least_probability)
