"""Weights without gradient: functions (Batch, PolicyOutput) -> float (B, T), (B, 1) or scalar.

A weight sees all response tokens of a sequence, not only those that its term selects.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from algorithms.batch import Batch, PolicyOutput
from algorithms.losses import LOG_RATIO_LIMIT, Old, bounded, ratio
from algorithms.selections import sampled
from algorithms.term import PerToken, Selection, labelled, one

Granularity = Literal["token", "sequence", "batch"]
Correction = Literal["none", "token_tis", "sequence_tis", "token_mis", "sequence_mis", "geometric_mis"]


@labelled
def constant(value: float) -> PerToken:
    return lambda batch, policy: policy.logprobs_BT.new_tensor(value)


@labelled
def scheduled(value_at: Callable[[int], float]) -> PerToken:
    """`value_at(step)`, where `step` counts the optimizer steps from the first step of the stage."""
    return lambda batch, policy: policy.logprobs_BT.new_tensor(value_at(batch.step))


@labelled
def value(name: str) -> PerToken:
    """A figure of each sequence; a term with this weight needs "values"."""
    return lambda batch, policy: batch.value_B1(name).to(policy.logprobs_BT.dtype)


@labelled
def product(first: PerToken, second: PerToken) -> PerToken:
    return lambda batch, policy: first(batch, policy) * second(batch, policy)


def combined(first: PerToken, second: PerToken) -> PerToken:
    """Their product, or the other one where one of them is the weight 1."""
    if first is one:
        return second
    return first if second is one else product(first, second)


@labelled
def entropy_weight(scale: float, sign: float, granularity: Granularity = "sequence") -> PerToken:
    """scale · exp(sign · H) (SRFT, Eq. 8 and 12), H an entropy of the policy in nats.

    H is the entropy of the token, its mean over the sequence, or its mean over all rollout tokens of the step
    (`batch`; a term with this weight needs "mean_entropy", else calling it raises ValueError).
    """

    def weight(batch: Batch, policy: PolicyOutput) -> Tensor:
        if granularity == "token":
            entropy = policy.entropies_BT
        elif granularity == "sequence":
            entropy = _sequence_mean(policy.entropies_BT, batch)
        else:
            entropy = policy.mean_entropy
        if entropy is None:
            raise ValueError(
                "the mean entropy of the step is missing: a term that uses it says needs=('mean_entropy',)"
            )
        return scale * (sign * entropy).exp()

    return weight


def probability(batch: Batch, policy: PolicyOutput) -> Tensor:
    """π (DFT, arXiv 2508.05629)."""
    return policy.logprobs_BT.exp()


def uncertainty(batch: Batch, policy: PolicyOutput) -> Tensor:
    """π(1-π): φ of CHORD (arXiv 2508.11408)."""
    return policy.logprobs_BT.exp() * -policy.logprobs_BT.expm1()


@labelled
def probability_between(low: float, high: float) -> PerToken:
    """1 where low ≤ π ≤ high, else 0."""

    def weight(batch: Batch, policy: PolicyOutput) -> Tensor:
        p_BT = policy.logprobs_BT.exp()
        return ((p_BT >= low) & (p_BT <= high)).to(p_BT.dtype)

    return weight


@labelled
def trust_region(alpha: float) -> PerToken:
    """min(1, π/α): with it, -log π has the gradient of -π/max(sg(π), α) (TRAPO, arXiv 2512.17636)."""
    return lambda batch, policy: (policy.logprobs_BT.exp() / alpha).clamp(max=1)


@labelled
def entropy_share(scale: float, power: float = 1.0, most: float | None = None) -> PerToken:
    """(H/scale)^power of each token, H in nats; H/scale is at most `most`, None: without limit."""
    return lambda batch, policy: (policy.entropies_BT / scale).clamp(0, most) ** power


@labelled
def clipped_ratio(old: Old, clip_low: float | None, clip_high: float | None) -> PerToken:
    """clip(π/π_old, 1-clip_low, 1+clip_high) (CISPO, arXiv 2506.13585); None: no clip on that side."""
    low = 0.0 if clip_low is None else 1 - clip_low
    high = None if clip_high is None else 1 + clip_high
    return bounded(ratio(old), low, high)


@labelled
def improbability(gamma: float) -> PerToken:
    """(1-π)^γ: the exploration-based advantage of RL-PLUS (arXiv 2508.00222)."""
    return lambda batch, policy: (-policy.logprobs_BT.expm1()).clamp(min=0) ** gamma


@labelled
def importance_to_reference(level: str, temperature: float, low: float, high: float) -> PerToken:
    """(π/reference)^temperature, clamped to [low, high] (iw-SFT, arXiv 2507.12856).

    π/reference is the ratio of each token, or its geometric mean over the sequence (`level="sequence"`).
    """

    def weight(batch: Batch, policy: PolicyOutput) -> Tensor:
        d_BT = policy.logprobs_BT - policy.reference_BT
        log_BT = _sequence_mean(d_BT, batch) if level == "sequence" else d_BT
        return (temperature * log_BT).exp().clamp(low, high)

    return weight


def correction(kind: Correction, low: float, high: float) -> PerToken:
    """The weight `one` for "none", else `mismatch_correction`."""
    return one if kind == "none" else mismatch_correction(kind, low, high)


@labelled
def mismatch_correction(kind: Correction, low: float, high: float) -> PerToken:
    """Corrects for the difference between the policies of engine and learner, ρ = π_old/π_behavior.

    `kind` is a level and an action. The level is that of ρ: of the token, the product over the sequence, or
    its geometric mean over the sequence; log ρ is clamped to ±20. The action tis truncates: min(ρ, high). The
    action mis masks: 1 where low ≤ ρ ≤ high, else 0.
    """
    level, _, action = kind.partition("_")

    def weight(batch: Batch, policy: PolicyOutput) -> Tensor:
        # The engine has no log-probs of what it did not sample.
        sampled_BT = sampled(batch)
        log_BT = torch.where(sampled_BT, policy.old_BT - batch.behavior_logprobs_BT, 0.0)
        if level != "token":
            log_BT = log_BT.sum(-1, keepdim=True)
        if level == "geometric":
            log_BT = log_BT / sampled_BT.sum(-1, keepdim=True).clamp(min=1)
        rho_BT = log_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        if action == "tis":
            return rho_BT.clamp(max=high)
        within_BT = (rho_BT >= low) & (rho_BT <= high)
        return within_BT.to(rho_BT.dtype)

    return weight


@labelled
def highest_entropy(select: Selection, share: float) -> PerToken:
    """0 for selected tokens of low entropy, 1 for all other tokens.

    Of the n selected tokens of each sequence, the ⌈share · n⌉ with the highest entropy get 1.
    """

    def weight(batch: Batch, policy: PolicyOutput) -> Tensor:
        mask_BT = select(batch)
        lowest = policy.entropies_BT.new_full((), -torch.inf)
        entropy_BT = torch.where(mask_BT, policy.entropies_BT, lowest)
        # The argsort of an argsort is the rank; `stable` ranks equal entropies in the order of the tokens.
        rank_BT = entropy_BT.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        chosen_BT = rank_BT < (share * mask_BT.sum(-1, keepdim=True)).ceil()
        return (chosen_BT | ~mask_BT).to(policy.entropies_BT.dtype)

    return weight


def _sequence_mean(values_BT: Tensor, batch: Batch) -> Tensor:
    """Over the response tokens of each sequence, (B, 1); values at padding are 0."""
    return values_BT.sum(-1, keepdim=True) / batch.mask_BT.sum(-1, keepdim=True).clamp(min=1)
