"""RLOO: REINFORCE with the mean reward of the other rollouts as the baseline."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses
from algorithms.credit import leave_one_out
from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.term import Norm, Term


@dataclass(frozen=True)
class RLOO(GRPO):
    """REINFORCE leave-one-out: L = -E[Σ_t Â log π], Â = R_i - mean of the other rollouts' rewards

    There is neither an importance ratio nor a clip. Deviation: the paper's reward includes -β · KL to the
    reference; here there is no KL unless `kl_coefficient` is set, and then it is a term of the loss.
    """

    name: ClassVar[str] = "rloo"
    paper: ClassVar[str] = "arXiv 2402.14740"
    clip_low: float | None = None
    clip_high: float | None = None
    standardize: bool = False
    norm: Norm = "sequence_mean_token_sum"
    old: Old = "learner"

    def __post_init__(self) -> None:
        super().__post_init__()
        clips = (self.clip_low, self.clip_high, self.dual_clip)
        if self.standardize or clips != (None, None, None):
            fixed = "clip_low, clip_high, dual_clip and standardize"
            raise ValueError(f"rloo has no clip and no std: leave {fixed} at their defaults")

    @property
    def corrects_rollouts(self) -> bool:
        """Without a ratio, only a weight does."""
        return self.correction != "none"

    def policy_term(self) -> Term:
        loss = losses.advantage_weighted(losses.log_prob)
        return dataclasses.replace(super().policy_term(), loss=loss, metrics={})

    def credit_rule(self, rewards: list[float]) -> list[float]:
        return leave_one_out(rewards)
