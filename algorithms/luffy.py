"""LUFFY: the demonstration is an off-policy member of the group."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses
from algorithms.base import Algorithm
from algorithms.credit import group_advantages
from algorithms.losses import Old
from algorithms.regularizers import entropy_bonus
from algorithms.selections import demonstrations, everything, rollouts
from algorithms.term import Term
from algorithms.types import Group


@dataclass(frozen=True)
class LUFFY(Algorithm):
    """LUFFY: L = -1/Z [Σ_demo f(π) Â + Σ_rollouts CLIP(r, Â)], f(x) = x/(x+γ), r = π/π_old

    Â = R - mean over rollouts and demonstration. Z counts all response tokens of the update, as in the paper
    (the code divides by the maximal length). The final version of LUFFY has no clip; `clip` sets ε for the
    on-policy part. The entropy bonus is that of all tokens, with the paper's 0.01 (the script has 0.001). The
    authors' 7 rollouts and 1 demonstration are rollout.num_rollouts=7 here. A group of one has Â = 0 (the
    code: R).
    """

    name: ClassVar[str] = "luffy"
    paper: ClassVar[str] = "arXiv 2504.14945"
    gamma: float = 0.1
    clip: float | None = None
    standardize: bool = False
    old: Old = "learner"
    entropy_coefficient: float = 0.01

    def terms(self) -> tuple[Term, ...]:
        shaped = losses.advantage_weighted(losses.shaped_prob(self.gamma))
        return (
            Term("off_policy", demonstrations, shaped, population=everything),
            self.on_policy_term(),
            *entropy_bonus(self.entropy_coefficient, everything),
        )

    def on_policy_term(self) -> Term:
        ratio = losses.ratio(self.old)
        if self.clip is None:
            loss = losses.advantage_weighted(ratio)
        else:
            loss = losses.clipped(ratio, self.clip, self.clip)
        return Term("on_policy", rollouts, loss, population=everything)

    def advantages(self, group: Group) -> list[float]:
        return group_advantages(group.rewards, self.standardize)
