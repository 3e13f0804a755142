"""A term of an objective, and the kinds of function that it is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from algorithms.types import Batch, PolicyOutput

Selection = Callable[[Batch], Tensor]  # -> bool (B, T)
PerToken = Callable[[Batch, PolicyOutput], Tensor]  # -> float, broadcasts with (B, T)

Norm = Literal[
    "token_mean", "sequence_mean_token_sum", "sequence_mean_token_mean", "sequence_mean_constant", "constant"
]
NEEDS = ("reference", "mean_entropy", "entropy_gradient")


def one(batch: Batch, policy: PolicyOutput) -> Tensor:
    return torch.ones((), dtype=policy.logprobs_BT.dtype, device=policy.logprobs_BT.device)


@dataclass(frozen=True)
class Term:
    """`sum over selected tokens of weight * loss`, divided by a denominator of the whole update.

    Attributes:
        select: tokens that the loss is summed over.
        loss: per-token loss, differentiable.
        weight: per-token or per-sequence weight; detached here, whatever it returns.
        population: tokens that the denominator counts; `select` if None.
        norm: token_mean divides by the population's tokens; sequence_mean_token_sum by its sequences;
            sequence_mean_token_mean too, and each sequence's sum by its own length; sequence_mean_constant by sequences
            times rollout.max_new_tokens (Dr.GRPO); constant by `constant`, which must then be given.
        needs: of NEEDS, what has to be computed for it beside log-probs and entropies.
        watch: named per-token figures whose mean over the selected tokens becomes a metric.
    """

    name: str
    select: Selection
    loss: PerToken
    weight: PerToken = one
    population: Selection | None = None
    norm: Norm = "token_mean"
    constant: float | None = None
    needs: tuple[str, ...] = ()
    watch: Mapping[str, PerToken] | None = None

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ValueError(
                f"norm of term '{self.name}' is {self.norm!r}: choose one of {', '.join(get_args(Norm))}"
            )
        if self.norm == "constant" and not self.constant:
            raise ValueError(f"norm of term '{self.name}' is constant, but no constant is given")
        if set(self.needs) - set(NEEDS):
            raise ValueError(f"needs of term '{self.name}' are {self.needs}: choose from {', '.join(NEEDS)}")

    def count(self, batch: Batch) -> Tensor:
        """This batch's share of the count of the population, float64."""
        mask_BT = (self.population or self.select)(batch)
        count = (mask_BT.any(-1) if self.norm.startswith("sequence") else mask_BT).sum().double()
        return count * batch.max_new_tokens if self.norm == "sequence_mean_constant" else count

    def denominator(self, count: Tensor) -> Tensor:
        """What the sum is divided by, from the count over the whole update."""
        return torch.full_like(count, self.constant) if self.norm == "constant" else count.clamp(min=1)

    def total(self, batch: Batch, policy: PolicyOutput) -> tuple[Tensor, Tensor]:
        """(sum of weighted losses, sum of weights over the selected tokens); 0 where nothing is selected."""
        mask_BT = self.select(batch)
        weight_BT = self.weight(batch, policy.where(batch.mask_BT)).detach().expand_as(mask_BT)
        loss_BT = weight_BT * self.loss(batch, policy.where(mask_BT))
        if self.norm == "sequence_mean_token_mean":
            loss_BT = loss_BT / mask_BT.sum(-1, keepdim=True).clamp(min=1)
        zero = torch.zeros_like(loss_BT)
        return torch.where(mask_BT, loss_BT, zero).sum(), torch.where(mask_BT, weight_BT, zero).sum()


def labelled(factory: Callable[..., Callable]) -> Callable[..., Callable]:
    """Names what a factory makes after the call that made it, such as `clipped_ratio(0.2, 0.28)`, for tables and messages."""

    def make(*args: object, **settings: object) -> Callable:
        made = factory(*args, **settings)
        shown = [getattr(a, "__name__", str(a)) for a in args] + [
            f"{k}={getattr(v, '__name__', v)}" for k, v in settings.items()
        ]
        made.__name__ = f"{factory.__name__}({', '.join(shown)})"
        return made

    make.__name__, make.__doc__, make.__wrapped__ = factory.__name__, factory.__doc__, factory
    return make
