"""The loss of an update: the terms of the algorithm, each divided by its own global count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms import Algorithm, PolicyOutput
from srft_ray.train.batching import MicroBatch
from srft_ray.train.step_metrics import Sums, all_reduce


@dataclass(frozen=True)
class StepContext:
    """What the updates of a step have in common.

    Attributes:
        mean_entropy: of all rollout tokens before the first update, in nats, a scalar; None if not needed.
    """

    step: int
    algorithm: Algorithm
    temperature: float
    mean_entropy: Tensor | None = None


def global_counts(algorithm: Algorithm, micro_batches: Sequence[MicroBatch]) -> dict[str, Tensor]:
    """Of each term's population, over all micro-batches of the update on all ranks; a collective."""
    local = [algorithm.counts(micro_batch.batch) for micro_batch in micro_batches]
    return all_reduce({name: torch.stack([counts[name] for counts in local]).sum() for name in local[0]})


def add_loss(
    algorithm: Algorithm,
    micro_batch: MicroBatch,
    policy: PolicyOutput,
    counts: Mapping[str, Tensor],
    sums: Sums,
) -> Tensor:
    """The micro-batch's share of the update's loss, a scalar; adds what its terms measure to the sums."""
    batch = micro_batch.batch
    loss = torch.zeros((), device=policy.logprobs_BT.device)
    for term in algorithm.terms():
        total, weight = term.total(batch, policy)
        share = total / term.denominator(counts[term.name]).to(total.dtype)
        loss = loss + share
        selected_BT = term.select(batch)
        sums[f"loss/{term.name}"] += share.detach()
        sums[f"weight/{term.name}"] += weight
        sums[f"selected/{term.name}"] += selected_BT.sum()
        for name, figure in term.metrics.items():
            figure_BT = figure(batch, policy).detach() * selected_BT
            sums[f"metrics/{name}/{term.name}"] += figure_BT.sum()
    return loss
