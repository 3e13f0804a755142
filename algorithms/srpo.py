"""SRPO: GRPO on prompts that were not solved by all rollouts when they were trained on last."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.settings import limited
from algorithms.term import Norm
from algorithms.types import Visit


@dataclass(frozen=True)
class SRPO(GRPO):
    """SRPO: GRPO with history resampling and a token mean, without KL

    A prompt whose rollouts were all correct at its last visit is passed over: another prompt takes its place,
    before anything is sampled. Prompts with mixed or only wrong rollouts, and new ones, are kept. The authors
    filter after each epoch; here a visit counts from rollout.max_staleness + 1 steps later on, so that what
    is chosen does not depend on timing. Their code is not known: whether solved prompts return is not said,
    here they return after `revisit_after` steps (None: never), and std and clip are those of `grpo`. The
    stages of data (mathematics, then code) and the rewards for format are not here. The paper's batch is 256
    prompts with 32 rollouts.
    """

    name: ClassVar[str] = "srpo"
    paper: ClassVar[str] = "arXiv 2504.14286, from a summary"
    uses_history: ClassVar[bool] = True
    norm: Norm = "token_mean"
    old: Old = "learner"
    revisit_after: int | None = limited(None, least=1)

    def keeps(self, visits: Sequence[Visit], step: int, rng: random.Random) -> bool:
        last = visits[-1] if visits else None
        solved = last is not None and 0 < last.rollouts == last.correct
        if not solved:
            return True
        return self.revisit_after is not None and step - last.step >= self.revisit_after
