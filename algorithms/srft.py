"""SRFT: supervised and reinforcement fine-tuning in one stage."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from algorithms import losses, selections
from algorithms.base import Algorithm
from algorithms.credit import group_advantages
from algorithms.regularizers import entropy_bonus
from algorithms.term import Norm, Term
from algorithms.types import Group
from algorithms.weights import Granularity, entropy_weight

SURROGATES = {
    "log_prob": losses.log_prob,
    "prob": losses.prob,
    "ratio": losses.ratio(),
    "log_ratio": losses.log_ratio(),
}


@dataclass(frozen=True)
class SRFT(Algorithm):
    """Supervised reinforcement fine-tuning: L = w_SFT · L_SFT(demo) + L_RL(demo) + L_RL(self)  (Eq. 13)

    sft_demo     w_SFT · (-log π),   w_SFT = 0.5 · sg(exp(-H))           (Eq. 8)
    rl_demo      -Â · π,             ratio π_θ/π_β with π_β = 1, no clip  (Eq. 9, 10); Â over rollouts ∪ demonstration (Eq. 7)
    rl_positive  w_RL · (-log π),    w_RL = 0.1 · sg(exp(+H))            (Eq. 12)
    rl_negative  +log π                                                  (Eq. 12)

    Choices where the paper leaves one: H is the mean token entropy of the sequence itself; each term is a token mean over the
    whole update (`sequence_mean_token_sum` is the literal log π(y|x)); both rollout terms share the count of all rollout
    tokens, which is what E[R log π] of Eq. 11 gives; Â uses the standard deviation with ddof 1. A rollout is positive when
    its reward is above `correct_above`. With `self_rollout_mode: group_advantage` the coefficients ±1 become Â, and positive
    means Â > 0. Groups that are all wrong still push their tokens down. R log π is on-policy only in the first update of
    fresh rollouts: for several updates per step `self_rollout_surrogate: ratio` uses π/π_old.
    """

    name: ClassVar[str] = "srft"
    paper: ClassVar[str] = "arXiv 2506.19767"
    sft_scale: float = 0.5
    rl_scale: float = 0.1
    sft_entropy_sign: float = -1.0
    rl_entropy_sign: float = 1.0
    entropy_granularity: Granularity = "sequence"
    demo_ratio: Literal["p", "p_over_p_plus_gamma"] = "p"
    gamma: float = 0.1
    standardize: bool = True
    self_rollout_mode: Literal["reinforce", "group_advantage"] = "reinforce"
    self_rollout_surrogate: Literal["log_prob", "prob", "ratio", "log_ratio"] = "log_prob"
    pos_neg_norm: Literal["joint", "separate"] = "joint"
    norm: Norm = "token_mean"  # of the RL terms
    norm_constant: float = 8192.0
    sft_norm: Norm = "token_mean"
    entropy_coefficient: float = 0.0
    correct_above: float = 0.5
    use_sft_demo: bool = True
    use_rl_demo: bool = True

    def terms(self) -> tuple[Term, ...]:
        needs = ("mean_entropy",) if self.entropy_granularity == "batch" else ()
        w_sft = entropy_weight(self.sft_scale, self.sft_entropy_sign, self.entropy_granularity)
        demo_ratio = losses.prob if self.demo_ratio == "p" else losses.shaped_prob(self.gamma)
        norm, bonus = (
            {"norm": self.norm, "constant": self.norm_constant},
            entropy_bonus(self.entropy_coefficient),
        )
        sft = Term(
            "sft_demo",
            selections.demonstrations,
            losses.nll,
            w_sft,
            norm=self.sft_norm,
            constant=self.norm_constant,
            needs=needs,
        )
        rl = Term("rl_demo", selections.demonstrations, losses.advantage_weighted(demo_ratio), **norm)
        return (
            *(sft,) * self.use_sft_demo,
            *(rl,) * self.use_rl_demo,
            *self._rollout_terms(needs, **norm),
            *bonus,
        )

    def _rollout_terms(self, needs: tuple[str, ...], **norm: object) -> tuple[Term, ...]:
        w_rl, surrogate = (
            entropy_weight(self.rl_scale, self.rl_entropy_sign, self.entropy_granularity),
            SURROGATES[self.self_rollout_surrogate],
        )
        if self.self_rollout_mode == "group_advantage":
            positive, negative = selections.favoured_rollouts, selections.disfavoured_rollouts
            raise_it = lower_it = losses.advantage_weighted(surrogate)
        else:
            positive, negative = (
                selections.correct_rollouts(self.correct_above),
                selections.wrong_rollouts(self.correct_above),
            )
            raise_it, lower_it = losses.maximize(surrogate), losses.minimize(surrogate)
        population = selections.rollouts if self.pos_neg_norm == "joint" else None
        return (
            Term("rl_positive", positive, raise_it, w_rl, population, needs=needs, **norm),
            Term("rl_negative", negative, lower_it, population=population, **norm),
        )

    def advantages(self, group: Group) -> list[float]:
        return group_advantages(group.rewards, self.standardize)
