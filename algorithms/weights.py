"""Detached weights: functions (Batch, PolicyOutput) -> (B, T) or (B, 1)."""
from torch import Tensor

from algorithms.base import PerToken
from algorithms.types import Batch, PolicyOutput


def constant(value: float) -> PerToken:
    return lambda batch, policy: policy.logprobs_BT.new_tensor(value)


def entropy_weight(scale: float, sign: float, granularity: str = "sequence") -> PerToken:
    """scale · exp(sign · H), H the policy's entropy: of the token, or the mean over the sequence's response tokens."""
    if granularity not in ("token", "sequence"):
        raise ValueError(f"entropy granularity is {granularity!r}: choose token or sequence")

    def weight(batch: Batch, policy: PolicyOutput) -> Tensor:
        entropies_BT = policy.where(batch.mask_BT).entropies_BT.detach()
        if granularity == "token":
            return scale * (sign * entropies_BT).exp()
        return scale * (sign * entropies_BT.sum(-1, keepdim=True) / batch.mask_BT.sum(-1, keepdim=True).clamp(min=1)).exp()
    return weight
