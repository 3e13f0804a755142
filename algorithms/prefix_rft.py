"""Prefix-RFT: one rollout of each group continues a prefix of the demonstration."""

import dataclasses
import math
import random
from dataclasses import dataclass
from typing import ClassVar

from algorithms import selections, weights
from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.schedules import cosine
from algorithms.settings import limited
from algorithms.term import Term
from algorithms.types import Completion, Group


@dataclass(frozen=True)
class PrefixRFT(GRPO):
    """Prefix-RFT: GRPO where the first rollout of a group continues ⌊ℓ |y*|⌋ tokens of the demonstration y*

    |y*| is at most rollout.max_new_tokens. ℓ is uniform on [low, high]; low goes from `low_start` to
    `low_end` along half a cosine in `decay_steps` steps. The prefix has the same surrogate and advantage as
    the rest of its rollout, but only the `top_share` of its tokens with the highest entropy is trained on.
    Which normalisation and clip the authors launched is unknown, since their launch values are not public: Â
    with std, 1/|y| and a clip of 0.2 are a choice. Their recipe's defaults are a token mean and dual_clip 3;
    it can leave prefix tokens unclipped or clip them by bounds of their own, which is not offered here.
    Deviations: these tokens are chosen within each sequence, not within the micro-batch, so that the update
    does not depend on how it is split; π_old is the learner's policy, since the engine has no log-probs of a
    prefix, so that the clip has an effect only with several updates per step.
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
            wanted = "prefix_rft needs old=learner and correction=none"
            raise ValueError(f"{wanted}: the engine has no log-probs of a prefix")

    def policy_term(self) -> Term:
        chosen = weights.highest_entropy(selections.prefixes, self.top_share)
        return dataclasses.replace(super().policy_term(), weight=weights.combined(self.policy_weight, chosen))

    def prefix(self, group: Group, sample: int, step: int, rng: random.Random) -> int:
        if sample > 0 or not group.demonstrations:
            return 0
        length = min(len(group.demonstrations[0].ids), group.max_new_tokens)
        low = cosine(step, self.low_start, self.low_end, self.decay_steps)
        share = rng.uniform(min(low, self.high), self.high)
        # At least the last token before the end and the end itself remain to be sampled.
        return max(0, min(math.floor(share * length), length - 2))

    def trains_on(self, group: Group, completion: Completion) -> bool:
        return completion.origin == "rollout" and super().trains_on(group, completion)
