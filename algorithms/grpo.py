"""Group relative policy optimization, with the options that its family shares."""
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from algorithms import losses, selections, weights
from algorithms.base import Algorithm
from algorithms.credit import among_rollouts, group_advantages
from algorithms.losses import Estimator, Old
from algorithms.regularizers import entropy_bonus, kl_penalty
from algorithms.term import Norm, PerToken, Term, one
from algorithms.types import Completion, Group


@dataclass(frozen=True)
class GRPO(Algorithm):
    """Group relative policy optimization: L = -1/G Σ_k 1/|y_k| Σ_t min(r Â, clip(r, 1-ε, 1+ε) Â), r = π/π_old

    Â = (R - mean) / std over the group's rollouts. `old: behavior` takes the engine's own log-probs for π_old, so that
    the ratio corrects stale rollouts; with `old: learner` it is the learner's policy before the step's updates, and
    `correction` weighs tokens or sequences by π_old/π_behaviour (TIS truncates at `correction_high`, MIS keeps what is
    within both bounds). `mask_truncated` leaves responses without an end out of the update. Deviation: no KL unless
    `kl_coefficient` is set (DeepSeekMath uses 0.04 with k3).
    """
    name: ClassVar[str] = "grpo"
    paper: ClassVar[str] = "arXiv 2402.03300; Eq. 2 and 3 of arXiv 2506.19767"
    uses_demonstrations: ClassVar[bool] = False
    clip_low: float | None = 0.2  # None: no clip
    clip_high: float | None = 0.2
    dual_clip: float | None = None
    standardize: bool = True
    norm: Norm = "sequence_mean_token_mean"
    old: Old = "behavior"
    correction: Literal["none", "token_tis", "sequence_tis", "token_mis", "sequence_mis", "geometric_mis"] = "none"
    correction_low: float = 0.5
    correction_high: float = 2.0
    kl_coefficient: float = 0.0
    kl_estimator: Estimator = "k3"
    entropy_coefficient: float = 0.0
    mask_truncated: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.correction != "none" and self.old == "behavior":
            raise ValueError(f"correction={self.correction} with old=behavior would correct the mismatch twice: set old=learner")

    def ratio(self) -> PerToken:
        return losses.ratio(self.old)

    def terms(self) -> tuple[Term, ...]:
        return (self.policy_term(), *kl_penalty(self.kl_coefficient, self.kl_estimator, self.norm),
                *entropy_bonus(self.entropy_coefficient, norm=self.norm))

    def policy_term(self) -> Term:
        ratio, bounds = self.ratio(), (self.clip_low, self.clip_high)
        weight = one if self.correction == "none" else weights.mismatch_correction(self.correction, self.correction_low, self.correction_high)
        if self.clip_low is None or self.clip_high is None:
            return Term("policy", selections.rollouts, losses.advantage_weighted(ratio), weight, norm=self.norm)
        return Term("policy", selections.rollouts, losses.clipped(ratio, *bounds, self.dual_clip), weight, norm=self.norm,
                    watch={"clipped": losses.is_clipped(ratio, *bounds)})

    def advantages(self, group: Group) -> list[float]:
        return among_rollouts(group, partial(group_advantages, standardize=self.standardize))

    def trains_on(self, group: Group, completion: Completion) -> bool:
        return not (self.mask_truncated and completion.finish_reason == "length")
