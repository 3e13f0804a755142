"""SRFT: supervised and reinforcement fine-tuning in one stage (arXiv 2506.19767)."""
from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses, selections
from algorithms.base import Algorithm, Term
from algorithms.credit import group_advantages
from algorithms.types import Group
from algorithms.weights import entropy_weight


@dataclass(frozen=True)
class SRFT(Algorithm):
    """L = w_SFT · L_SFT(demo) + L_RL(demo) + L_RL(self)  (Eq. 13)

    sft_demo     w_SFT · (-log π),   w_SFT = 0.5 · sg(exp(-H))           (Eq. 8)
    rl_demo      -Â · π,             ratio π_θ/π_β with π_β = 1, no clip  (Eq. 9, 10); Â over rollouts ∪ demonstration (Eq. 7)
    rl_positive  w_RL · (-log π),    w_RL = 0.1 · sg(exp(+H))            (Eq. 12)
    rl_negative  +log π                                                  (Eq. 12)

    Where the paper is silent: H is the mean token entropy of the sequence itself; each term is a token mean over the
    whole optimizer step; both rollout terms share the count of all rollout tokens, which is what E[R log π] of Eq. 11
    gives; Â uses the standard deviation with ddof 1. A rollout is positive when its reward is above `correct_above`.
    """
    name: ClassVar[str] = "srft"
    sft_scale: float = 0.5
    rl_scale: float = 0.1
    sft_entropy_sign: float = -1.0
    rl_entropy_sign: float = 1.0
    entropy_granularity: str = "sequence"  # sequence | token
    standardize: bool = True
    correct_above: float = 0.5

    def terms(self) -> tuple[Term, ...]:
        w_sft = entropy_weight(self.sft_scale, self.sft_entropy_sign, self.entropy_granularity)
        w_rl = entropy_weight(self.rl_scale, self.rl_entropy_sign, self.entropy_granularity)
        correct, wrong = selections.correct_rollouts(self.correct_above), selections.wrong_rollouts(self.correct_above)
        return (
            Term("sft_demo", selections.demonstrations, losses.nll, w_sft),
            Term("rl_demo", selections.demonstrations, losses.probability_advantage),
            Term("rl_positive", correct, losses.nll, w_rl, population=selections.rollouts),
            Term("rl_negative", wrong, losses.log_likelihood, population=selections.rollouts),
        )

    def advantages(self, group: Group) -> list[float]:
        return group_advantages(group.rewards, self.standardize)
