"""Group relative policy optimization, with the options that its family shares."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from algorithms import losses, selections, weights
from algorithms.base import Algorithm, limited
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
    `correction` weighs tokens or sequences by π_old/π_behaviour: TIS truncates at `correction_high`; MIS keeps what is
    within both bounds, and what it leaves out stays in the count; geometric_mis wants bounds near 1, such as 0.999 and
    1.001. With one update per step and `old: learner` the ratio is 1 and no clip is ever active: set
    learner.mini_batches. `mask_truncated` leaves responses without an end out of the update. A group of one rollout has
    no credit and is refused. Deviation: no KL unless `kl_coefficient` is set (DeepSeekMath uses 0.04 with k3).
    """

    name: ClassVar[str] = "grpo"
    paper: ClassVar[str] = "arXiv 2402.03300; Eq. 2 and 3 of arXiv 2506.19767"
    uses_demonstrations: ClassVar[bool] = False
    min_rollouts: ClassVar[int] = 2
    clip_low: float | None = limited(0.2, least=0)  # None: no clip on this side
    clip_high: float | None = limited(0.2, least=0)
    dual_clip: float | None = limited(None, least=1)
    standardize: bool = True
    norm: Norm = "sequence_mean_token_mean"
    old: Old = "behavior"
    correction: Literal["none", "token_tis", "sequence_tis", "token_mis", "sequence_mis", "geometric_mis"] = (
        "none"
    )
    correction_low: float = limited(0.5, least=0)
    correction_high: float = limited(2.0, least=0)
    kl_coefficient: float = limited(0.0, least=0)
    kl_estimator: Estimator = "k3"
    entropy_coefficient: float = limited(0.0, least=0)
    mask_truncated: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.correction != "none" and self.old == "behavior":
            raise ValueError(
                f"correction={self.correction} with old=behavior would correct the mismatch twice: set old=learner"
            )
        if self.correction_low > self.correction_high:
            raise ValueError(
                f"correction_low={self.correction_low} is above correction_high={self.correction_high}: nothing would be kept"
            )

    def ratio(self) -> PerToken:
        return losses.ratio(self.old)

    def terms(self) -> tuple[Term, ...]:
        return (
            self.policy_term(),
            *kl_penalty(self.kl_coefficient, self.kl_estimator, self.norm),
            *entropy_bonus(self.entropy_coefficient),
        )

    def policy_term(self) -> Term:
        ratio, clip = self.ratio(), (self.clip_low, self.clip_high, self.dual_clip)
        weight = (
            one
            if self.correction == "none"
            else weights.mismatch_correction(self.correction, self.correction_low, self.correction_high)
        )
        return Term(
            "policy",
            selections.rollouts,
            losses.clipped(ratio, *clip),
            weight,
            norm=self.norm,
            watch={"clipped": losses.is_clipped(ratio, *clip)},
        )

    def advantages(self, group: Group) -> list[float]:
        return among_rollouts(group, partial(group_advantages, standardize=self.standardize))

    def trains_on(self, group: Group, completion: Completion) -> bool:
        return not (self.mask_truncated and completion.finish_reason == "length")
