"""Losses per token: functions (Batch, PolicyOutput) -> float (B, T).

A surrogate is a differentiable figure per token; a larger value makes the token more likely. `maximize`,
`minimize`, `advantage_weighted` and `clipped` turn a surrogate into a loss.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from algorithms.batch import Batch, PolicyOutput
from algorithms.term import PerToken, labelled

LOG_RATIO_LIMIT = 20.0
Old = Literal["behavior", "learner"]  # whose log-probs π_old has: the rollout engine's, or the learner's


def log_prob(batch: Batch, policy: PolicyOutput) -> Tensor:
    """log π."""
    return policy.logprobs_BT


def prob(batch: Batch, policy: PolicyOutput) -> Tensor:
    """π: the importance ratio when the behavior policy is set to 1 (SRFT, Eq. 10)."""
    return policy.logprobs_BT.exp()


@labelled
def shaped_prob(gamma: float) -> PerToken:
    """π/(π+γ): policy shaping of LUFFY (arXiv 2504.14945)."""

    def surrogate(batch: Batch, policy: PolicyOutput) -> Tensor:
        p_BT = policy.logprobs_BT.exp()
        return p_BT / (p_BT + gamma)

    return surrogate


def multiple_importance_ratio(batch: Batch, policy: PolicyOutput) -> Tensor:
    """2π / (π_ω + π_old), π_ω = (π_old + 1)/2: multiple importance sampling of RL-PLUS (arXiv 2508.00222)."""
    old_BT = policy.old_BT.exp()
    return 2 * policy.logprobs_BT.exp() / (old_BT + 0.5 * (old_BT + 1))


@labelled
def log_ratio(old: Old = "learner") -> PerToken:
    """log π/π_old, clamped to ±20.

    π_old is the learner's policy before the updates of the step, or the engine's policy (`behavior`).
    """

    def surrogate(batch: Batch, policy: PolicyOutput) -> Tensor:
        old_BT = batch.behavior_logprobs_BT if old == "behavior" else policy.old_BT
        return (policy.logprobs_BT - old_BT).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)

    return surrogate


@labelled
def distance_to_old(old: Old = "learner") -> PerToken:
    """|log π/π_old|."""
    log = log_ratio(old)
    return lambda batch, policy: log(batch, policy).abs()


@labelled
def ratio(old: Old = "learner") -> PerToken:
    """π/π_old."""
    log = log_ratio(old)
    return lambda batch, policy: log(batch, policy).exp()


@labelled
def shaped_ratio(gamma: float, old: Old = "learner") -> PerToken:
    """w/(w+γ), w = π/π_old: policy shaping of ExGRPO (arXiv 2510.02245)."""
    surrogate = ratio(old)
    return lambda batch, policy: 1 / (1 + gamma / surrogate(batch, policy))


@labelled
def sequence_ratio(old: Old = "learner") -> PerToken:
    """sg(s)·π/sg(π), s = exp(mean_t log π/π_old): the token form of GSPO (arXiv 2507.18071)."""
    log = log_ratio(old)

    def surrogate(batch: Batch, policy: PolicyOutput) -> Tensor:
        lengths_B1 = batch.mask_BT.sum(-1, keepdim=True).clamp(min=1)
        mean_B1 = log(batch, policy).sum(-1, keepdim=True) / lengths_B1
        return (mean_B1.detach() + policy.logprobs_BT - policy.logprobs_BT.detach()).exp()

    return surrogate


@labelled
def squared_sequence_log_ratio(old: Old = "learner") -> PerToken:
    """Summed over a sequence: S², S = Σ_t log π/π_old, with the gradient of S²; for sequence sums only."""
    log = log_ratio(old)

    def loss(batch: Batch, policy: PolicyOutput) -> Tensor:
        d_BT = log(batch, policy)
        sum_B1 = d_BT.sum(-1, keepdim=True)
        # Σ_t S (2 d_t - d_t) is S², and its gradient is 2 S Σ_t ∇d_t.
        return sum_B1.detach() * (2 * d_BT - d_BT.detach())

    return loss


def linearized(batch: Batch, policy: PolicyOutput) -> Tensor:
    """Any function of the log π(y|x) of several sequences, by its value and its slope at each of them.

    `sequence_values` gives "slope", the derivative by log π(y|x), and "loss", the part of the function's
    value that is counted at this sequence. Summed over tokens it has the function's value and gradient.
    """
    lengths_B1 = batch.mask_BT.sum(-1, keepdim=True).clamp(min=1)
    change_BT = policy.logprobs_BT - policy.logprobs_BT.detach()
    return batch.value_B1("slope") * change_BT + batch.value_B1("loss") / lengths_B1


@labelled
def bounded(surrogate: PerToken, low: float | None = None, high: float | None = None) -> PerToken:
    """The surrogate within [low, high], without gradient outside; None: no bound on that side."""
    return lambda batch, policy: surrogate(batch, policy).clamp(low, high)


@labelled
def maximize(surrogate: PerToken) -> PerToken:
    return lambda batch, policy: -surrogate(batch, policy)


@labelled
def minimize(surrogate: PerToken) -> PerToken:
    return lambda batch, policy: surrogate(batch, policy)


@labelled
def advantage_weighted(surrogate: PerToken) -> PerToken:
    """-Â · surrogate."""
    return lambda batch, policy: -batch.advantages_BT * surrogate(batch, policy)


@labelled
def clipped(
    surrogate: PerToken, clip_low: float | None, clip_high: float | None, dual_clip: float | None = None
) -> PerToken:
    """-min(r Â, clip(r, 1-ε_low, 1+ε_high) Â) (PPO); None: no clip on that side.

    With a dual clip c, the loss is at most -c Â where Â < 0 (arXiv 1912.09729).
    """
    low, high = _bounds(clip_low, clip_high)

    def loss(batch: Batch, policy: PolicyOutput) -> Tensor:
        ratio_BT = surrogate(batch, policy)
        advantages_BT = batch.advantages_BT
        loss_BT = -torch.minimum(ratio_BT * advantages_BT, ratio_BT.clamp(low, high) * advantages_BT)
        if dual_clip is None:
            return loss_BT
        return torch.where(advantages_BT < 0, torch.minimum(loss_BT, -dual_clip * advantages_BT), loss_BT)

    return loss


@labelled
def is_clipped(
    surrogate: PerToken, clip_low: float | None, clip_high: float | None, dual_clip: float | None = None
) -> PerToken:
    """1 where the gradient of `clipped` is 0 because of a clip, else 0."""
    low, high = _bounds(clip_low, clip_high)

    def share(batch: Batch, policy: PolicyOutput) -> Tensor:
        ratio_BT = surrogate(batch, policy).detach()
        advantages_BT = batch.advantages_BT
        above_BT = (advantages_BT > 0) & (ratio_BT > high)
        below_BT = (advantages_BT < 0) & (ratio_BT < low)
        clipped_BT = above_BT | below_BT
        if dual_clip is not None:
            clipped_BT |= (advantages_BT < 0) & (ratio_BT > dual_clip)
        return clipped_BT.to(ratio_BT.dtype)

    return share


def _bounds(clip_low: float | None, clip_high: float | None) -> tuple[float, float]:
    low = -math.inf if clip_low is None else 1 - clip_low
    high = math.inf if clip_high is None else 1 + clip_high
    return low, high


def logistic(margin: float) -> tuple[float, float]:
    """-log σ(margin), and its derivative -σ(-margin)."""
    small = math.exp(-abs(margin))  # never overflows
    value = max(-margin, 0.0) + math.log1p(small)
    share = small / (1 + small) if margin >= 0 else 1 / (1 + small)
    return value, -share


nll = maximize(log_prob)
