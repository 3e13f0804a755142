"""Losses per token: functions (Batch, PolicyOutput) -> (B, T).

A surrogate is a differentiable figure of a token whose increase makes the token more likely; `maximize`, `minimize`
and `advantage_weighted` turn it into a loss.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from algorithms.term import PerToken, labelled
from algorithms.types import Batch, PolicyOutput

LOG_RATIO_LIMIT = 20.0
Old = Literal["behavior", "learner"]
Estimator = Literal["k1", "k2", "k3", "k3_plus"]


def log_prob(batch: Batch, policy: PolicyOutput) -> Tensor:
    return policy.logprobs_BT


def prob(batch: Batch, policy: PolicyOutput) -> Tensor:
    """π: the importance ratio with behaviour policy 1 (SRFT Eq. 10)."""
    return policy.logprobs_BT.exp()


@labelled
def shaped_prob(gamma: float) -> PerToken:
    """p/(p+γ): policy shaping of LUFFY (arXiv 2504.14945)."""

    def surrogate(batch: Batch, policy: PolicyOutput) -> Tensor:
        p_BT = policy.logprobs_BT.exp()
        return p_BT / (p_BT + gamma)

    return surrogate


def multiple_importance_ratio(batch: Batch, policy: PolicyOutput) -> Tensor:
    """2π / (π_ω + π_old) with π_ω = (π_old + 1)/2: multiple importance sampling of RL-PLUS (arXiv 2508.00222)."""
    old_BT = policy.old_BT.exp()
    return 2 * policy.logprobs_BT.exp() / (old_BT + 0.5 * (old_BT + 1))


@labelled
def log_ratio(old: Old = "learner") -> PerToken:
    """log π/π_old, clamped to ±20; `old` is the learner's policy before the step's updates, or the engine's `behavior` policy."""

    def surrogate(batch: Batch, policy: PolicyOutput) -> Tensor:
        old_BT = batch.behavior_logprobs_BT if old == "behavior" else policy.old_BT
        return (policy.logprobs_BT - old_BT).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)

    return surrogate


@labelled
def ratio(old: Old = "learner") -> PerToken:
    """π/π_old."""
    log = log_ratio(old)
    return lambda batch, policy: log(batch, policy).exp()


@labelled
def sequence_ratio(old: Old = "learner") -> PerToken:
    """sg(s)·π/sg(π), s = exp(mean over the response of log π/π_old): the token form of GSPO (arXiv 2507.18071)."""
    log = log_ratio(old)

    def surrogate(batch: Batch, policy: PolicyOutput) -> Tensor:
        mean_B1 = log(batch, policy).sum(-1, keepdim=True) / batch.mask_BT.sum(-1, keepdim=True).clamp(min=1)
        return (mean_B1.detach() + policy.logprobs_BT - policy.logprobs_BT.detach()).exp()

    return surrogate


@labelled
def maximize(surrogate: PerToken) -> PerToken:
    return lambda batch, policy: -surrogate(batch, policy)


@labelled
def minimize(surrogate: PerToken) -> PerToken:
    return lambda batch, policy: surrogate(batch, policy)


@labelled
def advantage_weighted(surrogate: PerToken) -> PerToken:
    """-Â · surrogate."""
    return lambda batch, policy: -batch.advantages_B[:, None] * surrogate(batch, policy)


@labelled
def clipped(
    surrogate: PerToken, clip_low: float | None, clip_high: float | None, dual_clip: float | None = None
) -> PerToken:
    """-min(r Â, clip(r, 1-ε_low, 1+ε_high) Â) (PPO), None: no clip on that side; with dual clip c at most -c Â where Â < 0
    (arXiv 1912.09729)."""
    low, high = _bounds(clip_low, clip_high)

    def loss(batch: Batch, policy: PolicyOutput) -> Tensor:
        ratio_BT, advantages_B1 = surrogate(batch, policy), batch.advantages_B[:, None]
        loss_BT = -torch.minimum(ratio_BT * advantages_B1, ratio_BT.clamp(low, high) * advantages_B1)
        if dual_clip is None:
            return loss_BT
        return torch.where(advantages_B1 < 0, torch.minimum(loss_BT, -dual_clip * advantages_B1), loss_BT)

    return loss


@labelled
def is_clipped(
    surrogate: PerToken, clip_low: float | None, clip_high: float | None, dual_clip: float | None = None
) -> PerToken:
    """1 where the clip of `clipped` takes the gradient away."""
    low, high = _bounds(clip_low, clip_high)

    def share(batch: Batch, policy: PolicyOutput) -> Tensor:
        ratio_BT, advantages_B1 = surrogate(batch, policy).detach(), batch.advantages_B[:, None]
        bound_BT = (advantages_B1 > 0) & (ratio_BT > high) | (advantages_B1 < 0) & (ratio_BT < low)
        if dual_clip is not None:
            bound_BT |= (advantages_B1 < 0) & (ratio_BT > dual_clip)
        return bound_BT.to(ratio_BT.dtype)

    return share


def _bounds(clip_low: float | None, clip_high: float | None) -> tuple[float, float]:
    return -math.inf if clip_low is None else 1 - clip_low, math.inf if clip_high is None else 1 + clip_high


@labelled
def kl(estimator: Estimator) -> PerToken:
    """KL(π‖reference) of sampled tokens, d = log π/reference: k1 = d, k2 = d²/2, k3 = exp(-d)+d-1, k3_plus = value of k3, gradient of k2.

    d is kept within ±20. As a loss only k2 and k3_plus have the expected gradient of KL(π‖reference) on policy; that of k1 is zero in
    expectation, that of k3 belongs to KL(reference‖π).
    """

    def loss(batch: Batch, policy: PolicyOutput) -> Tensor:
        d_BT = (policy.logprobs_BT - policy.reference_BT).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        k2_BT, k3_BT = 0.5 * d_BT.square(), (-d_BT).exp() + d_BT - 1
        return {"k1": d_BT, "k2": k2_BT, "k3": k3_BT, "k3_plus": k2_BT - k2_BT.detach() + k3_BT.detach()}[
            estimator
        ]

    return loss


def negative_entropy(batch: Batch, policy: PolicyOutput) -> Tensor:
    """-H of the token's distribution; needs its gradient."""
    return -policy.entropies_BT


nll = maximize(log_prob)
