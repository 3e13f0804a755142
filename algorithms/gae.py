"""Generalized advantage estimation: per-token credit from a critic's values, and the loss of the critic."""

import torch
from torch import Tensor

from algorithms.batch import Batch, PolicyOutput
from algorithms.term import PerToken, labelled


def token_rewards(rewards_B: Tensor, mask_BT: Tensor) -> Tensor:
    """The reward of each sequence at its last token, 0 elsewhere; (B, T)."""
    positions_T = torch.arange(mask_BT.shape[-1], device=mask_BT.device)
    last_B1 = torch.where(mask_BT, positions_T, -1).amax(-1, keepdim=True)
    is_last_BT = mask_BT & (positions_T == last_B1)
    return torch.where(is_last_BT, rewards_B[:, None], 0.0)


def generalized_advantages(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, discount: float, gae_lambda: float
) -> Tensor:
    """Â_t = δ_t + γλ Â_{t+1}, δ_t = r_t + γ V_{t+1} - V_t (arXiv 1506.02438, Eq. 11-16); 0 outside the mask.

    V_t is the value of the state before token t. Behind the last token of a sequence there is neither value
    nor advantage.

    Args:
        mask_BT: bool, the tokens of a sequence. What stands between them counts for no time.
        discount: γ.
        gae_lambda: λ.
    """
    values_BT = torch.where(mask_BT, values_BT, 0.0)
    advantages_BT = torch.zeros_like(values_BT)
    following_B = torch.zeros_like(values_BT[:, 0])
    next_values_B = torch.zeros_like(following_B)
    for position in reversed(range(values_BT.shape[-1])):
        delta_B = rewards_BT[:, position] + discount * next_values_B - values_BT[:, position]
        is_token_B = mask_BT[:, position]
        following_B = torch.where(is_token_B, delta_B + discount * gae_lambda * following_B, following_B)
        next_values_B = torch.where(is_token_B, values_BT[:, position], next_values_B)
        advantages_BT[:, position] = following_B
    return torch.where(mask_BT, advantages_BT, 0.0)


@labelled
def clipped_value_error(clip: float | None) -> PerToken:
    """½ max((V - R)², (clip(V, V_old - ε, V_old + ε) - R)²), as in the code of arXiv 1707.06347; None: ½ (V -
    R)²."""

    def loss(batch: Batch, policy: PolicyOutput) -> Tensor:
        error_BT = (policy.values_BT - batch.returns_BT).square()
        if clip is not None:
            near_BT = batch.old_values_BT + (policy.values_BT - batch.old_values_BT).clamp(-clip, clip)
            error_BT = torch.maximum(error_BT, (near_BT - batch.returns_BT).square())
        return 0.5 * error_BT

    return loss


@labelled
def value_is_clipped(clip: float | None) -> PerToken:
    """1 where V is further than ε from V_old, else 0."""
    limit = float("inf") if clip is None else clip

    def share(batch: Batch, policy: PolicyOutput) -> Tensor:
        return ((policy.values_BT - batch.old_values_BT).abs() > limit).to(policy.values_BT.dtype)

    return share
