"""GRPO, with the options that its whole family shares."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from algorithms import losses, selections, weights
from algorithms.base import Algorithm
from algorithms.credit import among_rollouts, group_advantages
from algorithms.losses import Old
from algorithms.regularizers import Estimator, entropy_bonus, kl_penalty
from algorithms.settings import limited
from algorithms.term import Norm, PerToken, Term
from algorithms.types import Completion, Group
from algorithms.weights import Correction


@dataclass(frozen=True)
class GRPO(Algorithm):
    """Group relative policy optimization: L = -1/G Σ_k 1/|y_k| Σ_t min(r Â, clip(r, 1-ε, 1+ε) Â), r = π/π_old

    Â = (R - mean) / std over the group's rollouts. With `old: behavior`, π_old has the log-probs of the
    engine, so that the ratio corrects for stale rollouts. With `old: learner` it is the learner's policy
    before the updates of the step, and `correction` weights tokens or sequences by ρ = π_old/π_behavior: TIS
    is min(ρ, correction_high); MIS is 1 where ρ is within both bounds and else 0, and the count includes what
    gets 0. geometric_mis needs bounds near 1, such as 0.999 and 1.001. With `old: learner` and one update per
    step the ratio is 1 and the clip has no effect: set learner.mini_batches. A clip of None means no clip on
    that side. `mask_truncated` leaves responses without an end out of the update. At least two rollouts per
    prompt are required, since one alone has no advantage. Deviation: there is no KL term unless
    `kl_coefficient` is set (DeepSeekMath uses 0.04 with k3).
    """

    name: ClassVar[str] = "grpo"
    paper: ClassVar[str] = "arXiv 2402.03300; Eq. 2 and 3 of arXiv 2506.19767"
    uses_demonstrations: ClassVar[bool] = False
    min_rollouts: ClassVar[int] = 2
    clip_low: float | None = limited(0.2, least=0)
    clip_high: float | None = limited(0.2, least=0)
    dual_clip: float | None = limited(None, least=1)
    standardize: bool = True
    norm: Norm = "sequence_mean_token_mean"
    old: Old = "behavior"
    correction: Correction = "none"
    correction_low: float = limited(0.5, least=0)
    correction_high: float = limited(2.0, least=0)
    kl_coefficient: float = limited(0.0, least=0)
    kl_estimator: Estimator = "k3"
    entropy_coefficient: float = limited(0.0, least=0)
    mask_truncated: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.correction != "none" and self.old == "behavior":
            raise ValueError(f"correction={self.correction} and old=behavior correct twice: set old=learner")
        if self.correction_low > self.correction_high:
            bounds = f"correction_low={self.correction_low} is above correction_high={self.correction_high}"
            raise ValueError(f"{bounds}: nothing would be kept")

    def ratio(self) -> PerToken:
        return losses.ratio(self.old)

    def terms(self) -> tuple[Term, ...]:
        kl = kl_penalty(self.kl_coefficient, self.kl_estimator, self.norm)
        return (self.policy_term(), *kl, *entropy_bonus(self.entropy_coefficient))

    def policy_term(self) -> Term:
        """The clipped surrogate of the rollouts, and the share of tokens whose gradient the clip removes."""
        clip = (self.ratio(), self.clip_low, self.clip_high, self.dual_clip)
        weight = weights.correction(self.correction, self.correction_low, self.correction_high)
        clipped = {"clipped": losses.is_clipped(*clip)}
        loss = losses.clipped(*clip)
        return Term("policy", selections.rollouts, loss, weight, norm=self.norm, metrics=clipped)

    def advantages(self, group: Group) -> list[float]:
        return among_rollouts(group, partial(group_advantages, standardize=self.standardize))

    def trains_on(self, group: Group, completion: Completion) -> bool:
        return not (self.mask_truncated and completion.finish_reason == "length")
