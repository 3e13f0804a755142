"""Group relative policy optimization (arXiv 2402.03300; Eq. 2 and 3 of SRFT)."""
from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses, selections
from algorithms.base import Algorithm, Term
from algorithms.credit import group_advantages
from algorithms.types import Group


@dataclass(frozen=True)
class GRPO(Algorithm):
    """L = -1/G Σ_k 1/|y_k| Σ_t min(r Â, clip(r, 1-ε, 1+ε) Â), r = π / π_behaviour

    Deviations: no KL term; π_behaviour is the engine's own log-prob of the sampled token, so that stale rollouts are
    corrected by the ratio. `norm: token_mean` is DAPO's aggregation, `standardize: false` Dr.GRPO's advantage.
    """
    name: ClassVar[str] = "grpo"
    uses_demonstrations: ClassVar[bool] = False
    clip_low: float = 0.2
    clip_high: float = 0.2
    standardize: bool = True
    norm: str = "sequence_mean_token_mean"

    def terms(self) -> tuple[Term, ...]:
        return (Term("policy", selections.rollouts, losses.clipped_ratio_advantage(self.clip_low, self.clip_high), norm=self.norm),)

    def advantages(self, group: Group) -> list[float]:
        return group_advantages(group.rewards, self.standardize)
