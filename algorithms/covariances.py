"""The covariance of advantage and log-prob of each token over an update, and the tokens where it is high."""

import torch
from torch import Tensor

from algorithms.batch import Batch, PolicyOutput
from algorithms.selections import rollouts
from algorithms.term import PerToken, labelled

NO_SCORE = -torch.inf
HASH = 2654435761  # of Knuth: multiples of it are spread over the integers below 2^32


def covariance(batch: Batch, policy: PolicyOutput) -> Tensor:
    """(Â - mean Â)(log π - mean log π) of rollout tokens, without gradient (arXiv 2505.22617)."""
    advantage_B1 = batch.advantages_B[:, None] - batch.value_B1("mean_advantage")
    found_BT = advantage_B1 * (policy.logprobs_BT.detach() - batch.value_B1("mean_logprob"))
    return torch.where(rollouts(batch), found_BT, NO_SCORE)


@labelled
def drawn_between(lowest: float, highest: float, stopped: PerToken) -> PerToken:
    """A number that looks random, the same at every call, for tokens with a covariance in the bounds."""

    def score(batch: Batch, policy: PolicyOutput) -> Tensor:
        covariance_BT = covariance(batch, policy)
        eligible_BT = (covariance_BT >= lowest) & (covariance_BT <= highest) & ~stopped(batch, policy).bool()
        positions_T = torch.arange(covariance_BT.shape[-1], device=covariance_BT.device)
        # Integers, so that the draw does not depend on the number format.
        numbers_BT = batch.value_B1("draw").long() * 2**12 + positions_T
        draws_BT = (numbers_BT * HASH % 2**32).double()
        return torch.where(eligible_BT, draws_BT, NO_SCORE)

    return score


@labelled
def from_cutoff(score: PerToken) -> PerToken:
    """1 where the score of the token is at least the update's cutoff, else 0 (`Algorithm.cutoffs`)."""
    return lambda batch, policy: (score(batch, policy) >= batch.value_B1("cutoff")).to(
        policy.logprobs_BT.dtype
    )


@labelled
def below_cutoff(score: PerToken) -> PerToken:
    """1 where the score of the token is below the update's cutoff, else 0 (`Algorithm.cutoffs`)."""
    return lambda batch, policy: (score(batch, policy) < batch.value_B1("cutoff")).to(
        policy.logprobs_BT.dtype
    )


def cutoff(scores: Tensor, share: float) -> float:
    """Between the lowest score of the highest `share` of all tokens, at least one, and the next one.

    Args:
        scores: of all rollout tokens of the update, (N,); -inf for tokens that cannot be chosen.
    """
    count = max(1, int(share * scores.numel()))
    chosen = scores[scores > NO_SCORE].sort(descending=True).values
    if chosen.numel() == 0:
        return torch.inf
    if chosen.numel() <= count:
        return float(chosen[-1]) - 1.0
    return float((chosen[count - 1] + chosen[count]) / 2)
