"""The settings of SRFT. The defaults are the paper's, or one of its readings where it leaves a choice."""

import math
from dataclasses import dataclass
from typing import Literal

from algorithms import losses, selections, weights
from algorithms.base import Algorithm
from algorithms.settings import limited
from algorithms.term import Norm, PerToken, Selection, Term, one
from algorithms.weights import Granularity

SURROGATES = {
    "log_prob": losses.log_prob,
    "prob": losses.prob,
    "ratio": losses.ratio(),
    "log_ratio": losses.log_ratio(),
}


@dataclass(frozen=True)
class SRFTSettings(Algorithm):
    """The settings beside the equations of arXiv 2506.19767 they belong to, and what follows from them."""

    # The entropy weights: w_SFT = sft_scale · exp(sft_entropy_sign · H) (Eq. 8), and w_RL likewise (Eq. 12).
    sft_scale: float = 0.5
    rl_scale: float = 0.1
    sft_entropy_sign: float = -1.0
    rl_entropy_sign: float = 1.0
    # H: the entropy of the token, its mean over the sequence, or over all rollouts of the step (batch).
    entropy_granularity: Granularity = "sequence"
    # The ratio on demonstrations (Eq. 10): π, or π/(π + gamma).
    demo_ratio: Literal["p", "p_over_p_plus_gamma"] = "p"
    gamma: float = 0.1
    # Whether Â is divided by the standard deviation (Eq. 7).
    standardize: bool = True
    # The coefficients of rollouts (Eq. 12): +1 and -1 by reward, or Â.
    self_rollout_mode: Literal["reinforce", "group_advantage"] = "reinforce"
    # What these coefficients multiply; in the paper log π.
    self_rollout_surrogate: Literal["log_prob", "prob", "ratio", "log_ratio"] = "log_prob"
    # Bounds of the negative term, which has none in the paper. Its coefficient; a floor on log π, below which
    # a token of a wrong rollout is not pushed down further; and a PPO clip of the ratio on both kinds of
    # rollout, which needs self_rollout_surrogate=ratio. The defaults leave the paper's term as it is.
    negative_coefficient: float = limited(1.0, least=0)
    min_logprob: float | None = None
    ratio_clip: float | None = limited(None, least=0)
    # Whether rl_positive and rl_negative are divided by the count of all rollouts, or each by its own.
    pos_neg_norm: Literal["joint", "separate"] = "joint"
    # How the three RL terms, and the SFT term, are divided (`Term.norm`); the constant of norm=constant.
    norm: Norm = "token_mean"
    norm_constant: float = 8192.0
    sft_norm: Norm = "token_mean"
    # The coefficient of an entropy bonus, which is not in the paper.
    entropy_coefficient: float = 0.0
    # A rollout is correct when its reward is above this.
    correct_above: float = 0.5
    # False leaves the term out of the loss.
    use_sft_demo: bool = True
    use_rl_demo: bool = True

    @property
    def by_advantage(self) -> bool:
        """Whether Â takes the place of ±1 on rollouts."""
        return self.self_rollout_mode == "group_advantage"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio_clip is not None and self.self_rollout_surrogate != "ratio":
            raise ValueError("ratio_clip bounds π/π_old: set self_rollout_surrogate=ratio")

    @property
    def surrogate_up(self) -> PerToken:
        """What the coefficients of rollouts multiply that become more likely."""
        surrogate = SURROGATES[self.self_rollout_surrogate]
        if self.ratio_clip is None:
            return surrogate
        return losses.bounded(surrogate, high=1 + self.ratio_clip)

    @property
    def surrogate_down(self) -> PerToken:
        """What the coefficients of rollouts multiply that become less likely."""
        surrogate = SURROGATES[self.self_rollout_surrogate]
        if self.ratio_clip is None:
            return surrogate
        return losses.bounded(surrogate, low=1 - self.ratio_clip)

    @property
    def negative_weight(self) -> PerToken:
        """Coefficient and floor of the negative term."""
        coefficient = one
        if self.negative_coefficient != 1:
            coefficient = weights.constant(self.negative_coefficient)
        if self.min_logprob is None:
            return coefficient
        floor = weights.probability_between(math.exp(self.min_logprob), 1.0)
        return weights.combined(coefficient, floor)

    @property
    def population(self) -> Selection | None:
        """What the denominator of both rollout terms counts; None: each counts its own tokens."""
        return selections.rollouts if self.pos_neg_norm == "joint" else None

    @property
    def entropy_needs(self) -> tuple[str, ...]:
        """What the entropy weights need beside the entropy of each token."""
        return ("mean_entropy",) if self.entropy_granularity == "batch" else ()

    def rl_term(
        self,
        name: str,
        select: Selection,
        loss: PerToken,
        weight: PerToken = one,
        population: Selection | None = None,
        needs: tuple[str, ...] = (),
    ) -> Term:
        """A term that is divided as `norm` and `norm_constant` say."""
        return Term(name, select, loss, weight, population, self.norm, self.norm_constant, needs)
