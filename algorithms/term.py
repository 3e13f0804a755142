"""A term of a loss, and the kinds of function that it is made of."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from algorithms.batch import Batch, PolicyOutput

Selection = Callable[[Batch], Tensor]  # -> bool (B, T)
PerToken = Callable[[Batch, PolicyOutput], Tensor]  # -> float, broadcasts with (B, T)

Norm = Literal[
    "token_mean", "sequence_mean_token_sum", "sequence_mean_token_mean", "sequence_mean_constant", "constant"
]
NEEDS = (
    "reference",
    "reference_kl",
    "teacher_kl",
    "mean_entropy",
    "entropy_gradient",
    "values",
    "sequence_logprobs",
    "token_scores",
)

NAME = re.compile(r"[a-z][a-z0-9_]*")
# A metric of a term is recorded as <metric>/<term>. The trainer records keys of its own under these
# prefixes, so that a metric with such a name could replace one of them.
RESERVED_METRICS = frozenset(
    [
        *("loss", "count", "weight", "selected", "metrics"),
        *("entropy", "surprise", "tokens", "ratio", "parity"),
        *("reward", "length", "staleness", "groups", "verdict"),
        *("time", "utilization", "publications", "queue", "eval", "steps", "buffer", "replay", "critic"),
    ]
)


def one(batch: Batch, policy: PolicyOutput) -> Tensor:
    """The weight 1, a scalar."""
    return torch.ones((), dtype=policy.logprobs_BT.dtype, device=policy.logprobs_BT.device)


@dataclass(frozen=True)
class Term:
    """The sum over selected tokens of `weight · loss`, divided by a denominator of the whole update.

    Attributes:
        name: `[a-z][a-z0-9_]*`, unique within the algorithm; it names the term's count and metrics.
        select: the tokens over which the loss is summed, bool (B, T).
        loss: the loss of each token, (B, T), differentiable.
        weight: the weight of each token (B, T), of each sequence (B, 1), or a scalar. The term detaches it.
        population: the tokens that the denominator counts; None: those of `select`.
        norm: what the sum is divided by.
            token_mean: the number of the population's tokens.
            sequence_mean_token_sum: the number of sequences that have a token in the population.
            sequence_mean_token_mean: the same, and the sum of each sequence by its number of selected tokens.
            sequence_mean_constant: the number of sequences times rollout.max_new_tokens (Dr.GRPO).
            constant: `constant`, which must then be given.
        needs: what it needs beside log-probs and entropies, from NEEDS.
        metrics: figures per token by name. The mean of each over the selected tokens is recorded at every
            step as `<metric>/<term>`. Names follow the same rule, and RESERVED_METRICS are refused.

    Raises:
        ValueError: a name, `norm`, `constant` or `needs` that is not allowed.
    """

    name: str
    select: Selection
    loss: PerToken
    weight: PerToken = one
    population: Selection | None = None
    norm: Norm = "token_mean"
    constant: float | None = None
    needs: tuple[str, ...] = ()
    metrics: Mapping[str, PerToken] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name(f"a term is named {self.name!r}", self.name)
        for metric in self.metrics:
            _check_name(f"a metric of term '{self.name}' is named {metric!r}", metric)
            if metric in RESERVED_METRICS:
                raise ValueError(
                    f"a metric of term '{self.name}' is named '{metric}', which the trainer uses itself: "
                    "choose another name"
                )
        if self.norm not in get_args(Norm):
            choices = ", ".join(get_args(Norm))
            raise ValueError(f"norm of term '{self.name}' is {self.norm!r}: choose one of {choices}")
        if self.norm == "constant" and not self.constant:
            raise ValueError(f"norm of term '{self.name}' is constant, but no constant is given")
        if set(self.needs) - set(NEEDS):
            raise ValueError(f"needs of term '{self.name}' are {self.needs}: choose from {', '.join(NEEDS)}")

    def count(self, batch: Batch) -> Tensor:
        """How much this batch adds to the count of the population; a float64 scalar."""
        mask_BT = (self.population or self.select)(batch)
        counted = mask_BT.any(-1) if self.norm.startswith("sequence") else mask_BT
        count = counted.sum().double()
        return count * batch.max_new_tokens if self.norm == "sequence_mean_constant" else count

    def denominator(self, count: Tensor) -> Tensor:
        """What the sum is divided by, given the count over the whole update."""
        return torch.full_like(count, self.constant) if self.norm == "constant" else count.clamp(min=1)

    def total(self, batch: Batch, policy: PolicyOutput) -> tuple[Tensor, Tensor]:
        """(sum of weighted losses, sum of weights) over the selected tokens; 0 where nothing is selected."""
        mask_BT = self.select(batch)
        weight_BT = self.weight(batch, policy.where(batch.mask_BT)).detach().expand_as(mask_BT)
        loss_BT = weight_BT * self.loss(batch, policy.where(mask_BT))
        if self.norm == "sequence_mean_token_mean":
            loss_BT = loss_BT / mask_BT.sum(-1, keepdim=True).clamp(min=1)
        zero = torch.zeros_like(loss_BT)
        return torch.where(mask_BT, loss_BT, zero).sum(), torch.where(mask_BT, weight_BT, zero).sum()


def labelled(factory: Callable[..., Callable]) -> Callable[..., Callable]:
    """Decorates a factory of functions: what it makes is named after the call, for tables and messages.

    `clipped(prob, 0.2, clip_high=0.28)` makes a function named "clipped(prob, 0.2, clip_high=0.28)".
    """

    def make(*args: Any, **settings: Any) -> Callable:
        made = factory(*args, **settings)
        shown = [_label(value) for value in args]
        shown += [f"{key}={_label(value)}" for key, value in settings.items()]
        made.__name__ = f"{factory.__name__}({', '.join(shown)})"
        return made

    make.__name__ = factory.__name__
    make.__doc__ = factory.__doc__
    make.__wrapped__ = factory
    return make


def _label(value: Any) -> str:
    return getattr(value, "__name__", str(value))


def _check_name(what: str, name: str) -> None:
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise ValueError(f"{what}: use lower-case letters, digits and underscores, beginning with a letter")
