"""SRFT: supervised and reinforcement fine-tuning in one stage."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses, selections
from algorithms.credit import group_advantages
from algorithms.losses import advantage_weighted, maximize, minimize
from algorithms.regularizers import entropy_bonus
from algorithms.srft_settings import SRFTSettings
from algorithms.term import Term
from algorithms.types import Group
from algorithms.weights import entropy_weight


@dataclass(frozen=True)
class SRFT(SRFTSettings):
    """Supervised reinforcement fine-tuning: L = w_SFT · L_SFT(demo) + L_RL(demo) + L_RL(self)  (Eq. 13)

    sft_demo     w_SFT · (-log π)   demonstrations, w_SFT = 0.5 · sg(exp(-H))            (Eq. 8)
    rl_demo      -Â · π             demonstrations, ratio π/π_β with π_β = 1, no clip    (Eq. 9, 10)
    rl_positive  w_RL · (-log π)    correct rollouts, w_RL = 0.1 · sg(exp(+H))           (Eq. 12)
    rl_negative  +log π             wrong rollouts                                       (Eq. 12)

    Â = (R - mean) / std over the rollouts and the demonstration of a prompt (Eq. 7), std with ddof 1. Choices
    where the paper leaves one: H is the mean token entropy of the sequence. Each term is a token mean over
    the whole update (`sequence_mean_token_sum` is the literal log π(y|x)). Both rollout terms are divided by
    the number of all rollout tokens, which is what E[R log π] in Eq. 11 gives. rl_negative also applies if
    all rollouts of a prompt are wrong, and it has no lower bound; `negative_coefficient`, `min_logprob` and
    `ratio_clip` bound it, and are off as in the paper. With `self_rollout_mode: group_advantage`, Â replaces
    the coefficients ±1, and rl_positive has the rollouts with Â > 0. R log π is on-policy only in the first
    update of a step: with several updates per step, set `self_rollout_surrogate: ratio`, which uses π/π_old.
    """

    name: ClassVar[str] = "srft"
    paper: ClassVar[str] = "arXiv 2506.19767"

    def terms(self) -> tuple[Term, ...]:
        demo_terms = []
        if self.use_sft_demo:
            demo_terms.append(self.sft_demo())
        if self.use_rl_demo:
            demo_terms.append(self.rl_demo())
        return (*demo_terms, self.rl_positive(), self.rl_negative(), *entropy_bonus(self.entropy_coefficient))

    def sft_demo(self) -> Term:
        """Eq. 8: w_SFT · E_demo[-log π], w_SFT = 0.5 · sg(exp(-H))."""
        return Term(
            name="sft_demo",
            select=selections.demonstrations,
            loss=losses.nll,
            weight=entropy_weight(self.sft_scale, self.sft_entropy_sign, self.entropy_granularity),
            norm=self.sft_norm,
            constant=self.norm_constant,
            needs=self.entropy_needs,
        )

    def rl_demo(self) -> Term:
        """Eq. 9 and 10: -E_demo[Â · π]."""
        ratio = losses.prob if self.demo_ratio == "p" else losses.shaped_prob(self.gamma)
        return self.rl_term("rl_demo", selections.demonstrations, advantage_weighted(ratio))

    def rl_positive(self) -> Term:
        """Eq. 12, first half: w_RL · E_y+[-log π], w_RL = 0.1 · sg(exp(+H))."""
        w_rl = entropy_weight(self.rl_scale, self.rl_entropy_sign, self.entropy_granularity)
        correct = selections.correct_rollouts(self.correct_above)
        select = selections.favoured_rollouts if self.by_advantage else correct
        loss = advantage_weighted(self.surrogate_up) if self.by_advantage else maximize(self.surrogate_up)
        return self.rl_term("rl_positive", select, loss, w_rl, self.population, self.entropy_needs)

    def rl_negative(self) -> Term:
        """Eq. 12, second half: E_y-[log π]."""
        wrong = selections.wrong_rollouts(self.correct_above)
        select = selections.disfavoured_rollouts if self.by_advantage else wrong
        loss = advantage_weighted(self.surrogate_down) if self.by_advantage else minimize(self.surrogate_down)
        return self.rl_term("rl_negative", select, loss, self.negative_weight, self.population)

    def advantages(self, group: Group) -> list[float]:
        """Eq. 7."""
        return group_advantages(group.rewards, self.standardize)
