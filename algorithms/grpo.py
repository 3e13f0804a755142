"""GRPO, with the options that its whole family shares."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from algorithms import losses, selections
from algorithms.credit import among_rollouts, group_advantages
from algorithms.grpo_settings import GRPOSettings
from algorithms.regularizers import entropy_bonus, kl_penalty
from algorithms.term import PerToken, Selection, Term
from algorithms.types import Completion, Group


@dataclass(frozen=True)
class GRPO(GRPOSettings):
    """Group relative policy optimization: L = -1/G Σ_k 1/|y_k| Σ_t min(r Â, clip(r, 1-ε, 1+ε) Â), r = π/π_old

    Â = (R - mean) / std over the group's rollouts. With `old: behavior`, π_old has the log-probs of the
    engine, so that the ratio corrects for stale rollouts. With `old: learner` it is the learner's policy
    before the updates of the step, and `correction` weights tokens or sequences by ρ = π_old/π_behavior: TIS
    is min(ρ, correction_high); MIS is 1 where ρ is within both bounds and else 0, and the count includes what
    gets 0. geometric_mis needs bounds near 1, such as 0.999 and 1.001. With `old: learner` and one update per
    step the ratio is 1 and the clip has no effect: set learner.mini_batches. A clip of None means no clip on
    that side. `max_probability` τ leaves out the policy gradient of tokens with π > τ, which stay in the
    count. `entropy_kind: advantage` weights the entropy bonus by Â. `mask_truncated` leaves responses without
    an end out of the update. `norm: constant` divides by `norm_constant`. At least two rollouts per prompt
    are required, since one alone has no advantage. Deviations: there is no KL term unless `kl_coefficient` is
    set (DeepSeekMath uses 0.04 with k3); papers and their codes have `old: learner`, as the presets that
    claim a paper's settings do.
    """

    name: ClassVar[str] = "grpo"
    paper: ClassVar[str] = "arXiv 2402.03300; Eq. 2 and 3 of arXiv 2506.19767"
    uses_demonstrations: ClassVar[bool] = False
    min_rollouts: ClassVar[int] = 2
    bonus_tokens: ClassVar[Selection] = staticmethod(selections.sampled)

    def ratio(self) -> PerToken:
        return losses.ratio(self.old)

    def terms(self) -> tuple[Term, ...]:
        kl = kl_penalty(self.kl_coefficient, self.kl_estimator, self.norm, self.divisor)
        bonus = entropy_bonus(self.entropy_coefficient, self.bonus_tokens, self.entropy_kind)
        return (self.policy_term(), *kl, *bonus)

    def policy_term(self) -> Term:
        """The clipped surrogate of the rollouts, and the share of tokens whose gradient the clip removes."""
        clip = (self.ratio(), self.clip_low, self.clip_high, self.dual_clip)
        return Term(
            name="policy",
            select=selections.rollouts,
            loss=losses.clipped(*clip),
            weight=self.policy_weight,
            norm=self.norm,
            constant=self.divisor,
            metrics={"clipped": losses.is_clipped(*clip)},
        )

    def advantages(self, group: Group) -> list[float]:
        return among_rollouts(group, self.credit_rule, partial(self.shaped_reward, group))

    def credit_rule(self, rewards: list[float]) -> list[float]:
        """One advantage per rollout of a group."""
        return group_advantages(rewards, self.standardize)

    def trains_on(self, group: Group, completion: Completion) -> bool:
        return not (self.mask_truncated and completion.finish_reason == "length")
