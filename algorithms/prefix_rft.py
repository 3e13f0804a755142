"""Prefix-RFT: a prefix of the demonstration starts one of the rollouts."""

import dataclasses
import math
import random
from dataclasses import dataclass
from typing import ClassVar

from algorithms import selections, weights
from algorithms.base import limited
from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.schedules import cosine
from algorithms.term import Term
from algorithms.types import Completion, Group


@dataclass(frozen=True)
class PrefixRFT(GRPO):
    """Prefix-RFT: GRPO in which the first rollout of a group continues ⌊ℓ |y*|⌋ tokens of the demonstration y*

    A demonstration longer than rollout.max_new_tokens counts as of that length. ℓ is uniform on [low, high]; low falls
    from `low_start` to `low_end` along half a cosine in `decay_steps` steps. The prefix has the same surrogate and
    advantage, but only its `top_share` tokens of highest entropy are trained on. Deviations: the highest entropies are
    chosen within each sequence, not within the micro-batch, so that the update does not depend on how it is cut; π_old
    is the learner's, since the engine has no log-probs of a prefix, so that the clip acts only with several updates per
    step.
    """

    name: ClassVar[str] = "prefix_rft"
    paper: ClassVar[str] = "arXiv 2507.01679"
    uses_demonstrations: ClassVar[bool] = True
    old: Old = "learner"
    high: float = limited(0.95, least=0, most=1)
    low_start: float = limited(0.95, least=0, most=1)
    low_end: float = limited(0.0, least=0, most=1)
    decay_steps: int = limited(500, least=1)
    top_share: float = limited(0.2, least=0, most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.old != "learner" or self.correction != "none":
            raise ValueError(
                "prefix_rft needs old=learner and correction=none: the engine has no log-probs of a prefix"
            )

    def policy_term(self) -> Term:
        return dataclasses.replace(
            super().policy_term(), weight=weights.highest_entropy(selections.prefixes, self.top_share)
        )

    def prefix(self, group: Group, sample: int, step: int, rng: random.Random) -> int:
        if sample > 0 or not group.demonstrations:
            return 0
        length = min(len(group.demonstrations[0].ids), group.max_new_tokens)
        low = cosine(step, self.low_start, self.low_end, self.decay_steps)
        return max(0, min(math.floor(rng.uniform(min(low, self.high), self.high) * length), length - 2))

    def trains_on(self, group: Group, completion: Completion) -> bool:
        return completion.origin == "rollout" and super().trains_on(group, completion)
