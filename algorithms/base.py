"""An algorithm is a tuple of named terms and a credit rule.

Losses sum: a term's loss is a sum over tokens divided by a count over the whole optimizer step. The count never
looks at the model, so that every micro-batch on every rank knows the denominators before its forward pass.
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from algorithms.types import Batch, Group, PolicyOutput

Selection = Callable[[Batch], Tensor]  # -> bool (B, T)
PerToken = Callable[[Batch, PolicyOutput], Tensor]  # -> float, broadcasts with (B, T)

NORMS = ("token_mean", "sequence_mean_token_sum", "sequence_mean_token_mean")


def one(batch: Batch, policy: PolicyOutput) -> Tensor:
    return torch.ones((), dtype=policy.logprobs_BT.dtype, device=policy.logprobs_BT.device)


@dataclass(frozen=True)
class Term:
    """`sum over selected tokens of weight * loss`, divided by the step's global count of its population.

    Attributes:
        select: tokens that the loss is summed over.
        loss: per-token loss, differentiable.
        weight: per-token or per-sequence weight; detached here, whatever it returns.
        population: tokens that the denominator counts; `select` if None.
        norm: token_mean counts tokens; sequence_mean_token_sum counts sequences; sequence_mean_token_mean counts
            sequences and divides each sequence's sum by its own length.
    """
    name: str
    select: Selection
    loss: PerToken
    weight: PerToken = one
    population: Selection | None = None
    norm: str = "token_mean"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm of term '{self.name}' is {self.norm!r}: choose one of {', '.join(NORMS)}")

    def count(self, batch: Batch) -> Tensor:
        """This batch's share of the denominator, float64."""
        mask_BT = (self.population or self.select)(batch)
        return (mask_BT if self.norm == "token_mean" else mask_BT.any(-1)).sum().double()

    def total(self, batch: Batch, policy: PolicyOutput) -> tuple[Tensor, Tensor]:
        """(sum of weighted losses, sum of weights over the selected tokens); 0 where nothing is selected."""
        mask_BT = self.select(batch)
        weight_BT = self.weight(batch, policy).detach().expand_as(mask_BT)
        loss_BT = weight_BT * self.loss(batch, policy.where(mask_BT))
        if self.norm == "sequence_mean_token_mean":
            loss_BT = loss_BT / mask_BT.sum(-1, keepdim=True).clamp(min=1)
        zero = torch.zeros_like(loss_BT)
        return torch.where(mask_BT, loss_BT, zero).sum(), torch.where(mask_BT, weight_BT, zero).sum()


@dataclass(frozen=True)
class Stage:
    """What is trained at a step: an algorithm, where its schedule began, how long it is, and its own learning rate."""
    algorithm: "Algorithm"
    start: int
    steps: int
    lr: float | None = None


class Algorithm:
    """Base class. A subclass is a dataclass whose fields are its settings (in YAML: the keys beside `algorithm.name`)."""
    name: ClassVar[str]
    uses_rollouts: ClassVar[bool] = True  # False: no engine is started
    uses_demonstrations: ClassVar[bool] = True

    def terms(self) -> tuple[Term, ...]:
        raise NotImplementedError

    def advantages(self, group: Group) -> list[float]:
        """One advantage per completion of the group, in its order."""
        return [0.0] * len(group.completions)

    def stage(self, step: int, total_steps: int) -> Stage:
        return Stage(self, 0, total_steps)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Denominators of one batch; sum them over all micro-batches and ranks of the step."""
        return {term.name: term.count(batch) for term in self.terms()}

    def losses(self, batch: Batch, policy: PolicyOutput, counts: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Loss per term; their sum is what is minimised. `counts`: the step's global denominators (None: this batch is all)."""
        counts = counts or self.counts(batch)
        return {t.name: t.total(batch, policy)[0] / counts[t.name].clamp(min=1) for t in self.terms()}
