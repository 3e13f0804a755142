"""RLOO: REINFORCE with the other rollouts as baseline."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses
from algorithms.credit import among_rollouts, leave_one_out
from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.term import Norm, Term
from algorithms.types import Group


@dataclass(frozen=True)
class RLOO(GRPO):
    """REINFORCE leave-one-out: L = -E[Σ_t Â log π], Â = R_i - mean of the other rollouts' rewards; neither ratio nor clip"""

    name: ClassVar[str] = "rloo"
    paper: ClassVar[str] = "arXiv 2402.14740"
    clip_low: float | None = None
    clip_high: float | None = None
    standardize: bool = False
    norm: Norm = "sequence_mean_token_sum"
    old: Old = "learner"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.standardize or (self.clip_low, self.clip_high, self.dual_clip) != (None, None, None):
            raise ValueError(
                "rloo has no clip and no std: leave clip_low, clip_high, dual_clip and standardize as they are"
            )

    def policy_term(self) -> Term:
        return dataclasses.replace(
            super().policy_term(), loss=losses.advantage_weighted(losses.log_prob), watch=None
        )

    def advantages(self, group: Group) -> list[float]:
        return among_rollouts(group, leave_one_out)
