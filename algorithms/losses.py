"""Losses per token: functions (Batch, PolicyOutput) -> (B, T)."""
import torch
from torch import Tensor

from algorithms.base import PerToken
from algorithms.types import Batch, PolicyOutput


def nll(batch: Batch, policy: PolicyOutput) -> Tensor:
    """-log π(y_t)."""
    return -policy.logprobs_BT


def log_likelihood(batch: Batch, policy: PolicyOutput) -> Tensor:
    """+log π(y_t): pushes the token down."""
    return policy.logprobs_BT


def probability_advantage(batch: Batch, policy: PolicyOutput) -> Tensor:
    """-Â π(y_t): the importance ratio with behaviour policy 1 and no clip (SRFT Eq. 9-10)."""
    return -batch.advantages_B[:, None] * policy.logprobs_BT.exp()


def shaped_probability_advantage(gamma: float) -> PerToken:
    """-Â p/(p+γ): policy shaping of LUFFY (arXiv 2504.14945)."""
    def loss(batch: Batch, policy: PolicyOutput) -> Tensor:
        p_BT = policy.logprobs_BT.exp()
        return -batch.advantages_B[:, None] * p_BT / (p_BT + gamma)
    return loss


def clipped_ratio_advantage(clip_low: float, clip_high: float) -> PerToken:
    """-min(r Â, clip(r, 1-ε_low, 1+ε_high) Â) with r = π / π_behaviour (GRPO, arXiv 2402.03300, Eq. 3 of SRFT)."""
    def loss(batch: Batch, policy: PolicyOutput) -> Tensor:
        log_ratio_BT = (policy.logprobs_BT - batch.behavior_logprobs_BT).clamp(-20, 20)
        ratio_BT, advantages_B1 = log_ratio_BT.exp(), batch.advantages_B[:, None]
        return -torch.minimum(ratio_BT * advantages_B1, ratio_BT.clamp(1 - clip_low, 1 + clip_high) * advantages_B1)
    return loss
