"""CISPO: the importance weight is clipped, and no token loses its gradient."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses, weights
from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.settings import limited
from algorithms.term import Norm, Term


@dataclass(frozen=True)
class CISPO(GRPO):
    """Clipped importance sampling: L = -1/Σ|y| Σ_tokens sg(clip(r, 1-ε_low, 1+ε_high)) Â log π, r = π/π_old

    A token outside the bounds keeps the gradient of log π with the bound as its weight, where PPO's clip has
    none. The paper has no lower bound and tunes ε_high only; its value is unknown, and 4 (r at most 5) is a
    choice. Â is GRPO's. `dual_clip` has no place here. For several updates per step or stale rollouts, if
    rare words such as "however" matter.
    """

    name: ClassVar[str] = "cispo"
    paper: ClassVar[str] = "arXiv 2506.13585"
    clip_low: float | None = limited(None, least=0)
    clip_high: float | None = limited(4.0, least=0)
    norm: Norm = "token_mean"
    old: Old = "learner"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dual_clip is not None:
            raise ValueError("cispo clips a weight, not the loss: leave dual_clip empty")

    def policy_term(self) -> Term:
        ratio = weights.clipped_ratio(self.old, self.clip_low, self.clip_high)
        loss = losses.advantage_weighted(losses.log_prob)
        weight = weights.combined(self.policy_weight, ratio)
        return dataclasses.replace(super().policy_term(), loss=loss, weight=weight, metrics={})
