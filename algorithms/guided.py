"""Methods that help a part of the rollouts with the beginning of the demonstration."""

import random
from dataclasses import dataclass
from typing import ClassVar, Literal

from algorithms import losses, selections, weights
from algorithms.hinted import UFT, HintedGRPO, hint_length
from algorithms.losses import Old
from algorithms.settings import limited
from algorithms.term import Norm, Selection, Term
from algorithms.types import Group


@dataclass(frozen=True)
class R3(UFT):
    """Reverse curriculum with mixed starts: GRPO on what follows a hint of uniformly random length

    As the variant of UFT's code that has this name: no loss on the hint, and hints in all steps. Everything
    else is UFT's; the original paper's critic is not used.
    """

    name: ClassVar[str] = "r3"
    paper: ClassVar[str] = "arXiv 2402.05808"
    hint: Literal["binomial", "uniform"] = "uniform"
    hint_steps: int = limited(1_000_000, least=1)
    hint_coefficient: float = limited(0.0, least=0)


@dataclass(frozen=True)
class GuidedGRPO(HintedGRPO):
    """GRPO where the first half of the rollouts of a group continues a part of the demonstration

    The length of the part is uniform on [shortest, longest] · |y*|, and only sampled tokens are trained on.
    It is what POPE and AdaBack have in common. POPE gives prefixes only to prompts whose rollouts all failed
    before (`pope`) and chooses the length that helps; AdaBack (`adaback`) searches that length by bisection
    for each prompt. The share of guided rollouts and the lengths are choices.
    """

    name: ClassVar[str] = "grpo_guided"
    paper: ClassVar[str] = "after arXiv 2601.18779 (POPE) and arXiv 2506.18110 (AdaBack)"
    guided_share: float = limited(0.5, least=0, most=1)
    shortest: float = limited(0.0, least=0, most=1)
    longest: float = limited(0.75, least=0, most=1)

    def prefix(self, group: Group, sample: int, step: int, rng: random.Random) -> int:
        if sample >= self.guided_share * group.num_rollouts:
            return 0
        return hint_length(group, rng.uniform(min(self.shortest, self.longest), self.longest))


@dataclass(frozen=True)
class TRAPO(GuidedGRPO):
    """TRAPO: RL on sampled tokens, and on prefixes SFT within a trust region: sg(min(1, π/α)) · -log π

    The gradient of a prefix token is that of π / max(sg(π), α), as in the authors' code: SFT where π ≥ α, and
    weaker below, where SFT pushes hardest. α is 0.1, RL has no std and no clip, and the entropy bonus of
    0.001 is over all tokens, as in the script. Deviations: the prefixes are those of `grpo_guided`; the
    authors choose their lengths in micro-groups, by the returns of those sampled before. Both parts are
    divided by the count of all response tokens (the script: by the padded width).
    """

    name: ClassVar[str] = "trapo"
    paper: ClassVar[str] = "arXiv 2512.17636, code at Su-my/TRAPO 3a7efa9"
    bonus_tokens: ClassVar[Selection] = staticmethod(selections.everything)
    clip_low: float | None = limited(None, least=0)
    clip_high: float | None = limited(None, least=0)
    standardize: bool = False
    norm: Norm = "token_mean"
    old: Old = "learner"
    entropy_coefficient: float = limited(0.001, least=0)
    alpha: float = limited(0.1, least=1e-6, most=1)

    def terms(self) -> tuple[Term, ...]:
        weight = weights.trust_region(self.alpha)
        everything = selections.everything
        sft_term = Term("sft_prefix", selections.prefixes, losses.nll, weight, population=everything)
        return (*super().terms(), sft_term)
