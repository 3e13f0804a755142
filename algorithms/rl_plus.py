"""RL-PLUS: LUFFY's group with multiple importance sampling and an advantage that favours exploration."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses, weights
from algorithms.base import Algorithm
from algorithms.credit import group_advantages
from algorithms.losses import Old
from algorithms.regularizers import entropy_bonus
from algorithms.selections import demonstrations, everything, rollouts
from algorithms.term import Term
from algorithms.types import Group


@dataclass(frozen=True)
class RLPLUS(Algorithm):
    """RL-PLUS: L = -1/Z [Σ_demo r_m Â (1 - sg π)^γ + Σ_rollouts r Â], r_m = 2π/(π_ω + π_old)

    π_ω = (π_old + 1)/2 is multiple importance sampling as in the authors' code; in the paper the second
    member of the mixture is a uniform policy, for which the code's 1 stands in. (1 - π)^γ gives more weight
    to improbable tokens of the demonstration. There is no clip. Â = R - mean over rollouts and demonstration;
    a group of one has Â = 0 (the code: R). `old` is π_old of the rollouts; r_m uses the learner's. The
    authors' 7 rollouts and 1 demonstration are rollout.num_rollouts=7 here. Deviation: Z counts all response
    tokens of the update; the code divides by the maximal length. The entropy bonus is that of all tokens.
    """

    name: ClassVar[str] = "rl_plus"
    paper: ClassVar[str] = "arXiv 2508.00222"
    gamma: float = 0.5
    standardize: bool = False
    old: Old = "learner"
    entropy_coefficient: float = 0.001

    def terms(self) -> tuple[Term, ...]:
        off_policy = losses.advantage_weighted(losses.multiple_importance_ratio)
        exploration = weights.improbability(self.gamma)
        on_policy = losses.advantage_weighted(losses.ratio(self.old))
        return (
            Term("off_policy", demonstrations, off_policy, exploration, population=everything),
            Term("on_policy", rollouts, on_policy, population=everything),
            *entropy_bonus(self.entropy_coefficient, everything),
        )

    def advantages(self, group: Group) -> list[float]:
        return group_advantages(group.rewards, self.standardize)
