"""Detached weights: functions (Batch, PolicyOutput) -> (B, T), (B, 1) or a scalar. They see every response token of a sequence."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from algorithms.losses import LOG_RATIO_LIMIT
from algorithms.term import PerToken, Selection, labelled
from algorithms.types import Batch, PolicyOutput

Granularity = Literal["token", "sequence", "batch"]


@labelled
def constant(value: float) -> PerToken:
    return lambda batch, policy: policy.logprobs_BT.new_tensor(value)


@labelled
def scheduled(value_at: Callable[[int], float]) -> PerToken:
    """A constant that changes with the optimizer steps of the stage."""
    return lambda batch, policy: policy.logprobs_BT.new_tensor(value_at(batch.step))


@labelled
def product(first: PerToken, second: PerToken) -> PerToken:
    return lambda batch, policy: first(batch, policy) * second(batch, policy)


@labelled
def entropy_weight(scale: float, sign: float, granularity: Granularity = "sequence") -> PerToken:
    """scale · exp(sign · H), H the policy's entropy: of the token, mean of the sequence, or mean of all rollouts of the step."""

    def weight(batch: Batch, policy: PolicyOutput) -> Tensor:
        entropy_BT = policy.entropies_BT
        if granularity == "sequence":
            entropy_BT = _sequence_mean(entropy_BT, batch)
        if granularity == "batch":
            if policy.mean_entropy is None:
                raise ValueError(
                    "the mean entropy of the step is missing: a term that uses it says needs=('mean_entropy',)"
                )
            entropy_BT = policy.mean_entropy
        return scale * (sign * entropy_BT).exp()

    return weight


def probability(batch: Batch, policy: PolicyOutput) -> Tensor:
    """π (DFT, arXiv 2508.05629)."""
    return policy.logprobs_BT.exp()


def uncertainty(batch: Batch, policy: PolicyOutput) -> Tensor:
    """π(1-π): φ of CHORD (arXiv 2508.11408)."""
    return policy.logprobs_BT.exp() * -policy.logprobs_BT.expm1()


@labelled
def improbability(gamma: float) -> PerToken:
    """(1-π)^γ: the exploration-based advantage of RL-PLUS (arXiv 2508.00222)."""
    return lambda batch, policy: (-policy.logprobs_BT.expm1()).clamp(min=0) ** gamma


@labelled
def importance_to_reference(level: str, temperature: float, low: float, high: float) -> PerToken:
    """(π/reference)^temperature within [low, high], of each token or of the sequence's geometric mean (iw-SFT, arXiv 2507.12856)."""

    def weight(batch: Batch, policy: PolicyOutput) -> Tensor:
        d_BT = policy.logprobs_BT - policy.reference_BT
        log_BT = _sequence_mean(d_BT, batch) if level == "sequence" else d_BT
        return (temperature * log_BT).exp().clamp(low, high)

    return weight


@labelled
def mismatch_correction(kind: str, low: float, high: float) -> PerToken:
    """Corrects for engine and learner being different policies, ρ = π_old/π_behaviour of token or sequence (log ρ within ±20).

    tis truncates: min(ρ, high). mis masks: 1 if low ≤ ρ ≤ high, else 0. `geometric` is the sequence's geometric mean of ρ.
    """
    level, _, action = kind.partition("_")

    def weight(batch: Batch, policy: PolicyOutput) -> Tensor:
        log_BT = policy.old_BT - batch.behavior_logprobs_BT
        if level != "token":
            log_BT = log_BT.sum(-1, keepdim=True) if level == "sequence" else _sequence_mean(log_BT, batch)
        rho_BT = log_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        return (
            rho_BT.clamp(max=high)
            if action == "tis"
            else ((rho_BT >= low) & (rho_BT <= high)).to(rho_BT.dtype)
        )

    return weight


@labelled
def highest_entropy(select: Selection, share: float) -> PerToken:
    """1 for the ⌈share · n⌉ of a sequence's n selected tokens that have the highest entropy, and for all others of the sequence; else 0."""

    def weight(batch: Batch, policy: PolicyOutput) -> Tensor:
        mask_BT = select(batch)
        entropy_BT = torch.where(mask_BT, policy.entropies_BT, policy.entropies_BT.new_full((), -torch.inf))
        rank_BT = entropy_BT.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        chosen_BT = rank_BT < (share * mask_BT.sum(-1, keepdim=True)).ceil()
        return (chosen_BT | ~mask_BT).to(policy.entropies_BT.dtype)

    return weight


def _sequence_mean(values_BT: Tensor, batch: Batch) -> Tensor:
    return values_BT.sum(-1, keepdim=True) / batch.mask_BT.sum(-1, keepdim=True).clamp(min=1)
