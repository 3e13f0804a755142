"""KL of the policy to another model over the whole vocabulary, in chunks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from srft_ray.models import LogitForm
from srft_ray.train.scores import Scores
from srft_ray.train.weight_gradients import linear


@dataclass(frozen=True)
class ReferenceLogits:
    """What a model's logits of the scored tokens are made of: hidden states and its whole head."""

    hidden_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None
    form: LogitForm

    @classmethod
    def of(cls, head: nn.Module, hidden_NH: Tensor, form: LogitForm | None = None) -> "ReferenceLogits":
        """Within a call of the head: after it, ZeRO-3 takes the weight apart, so that a copy is kept."""
        partitioned = hasattr(head.weight, "ds_id")
        kept = [
            parameter.detach().clone() if partitioned and parameter is not None else parameter
            for parameter in (head.weight, head.bias)
        ]
        return cls(hidden_NH, *kept, form or LogitForm())

    def rows(self, first: int, end: int) -> "ReferenceLogits":
        return replace(self, hidden_NH=self.hidden_NH[first:end])

    def logits(self) -> Tensor:
        """(N, V), in float32 or the model's wider type, without temperature."""
        raw_NV = linear(self.hidden_NH, self.weight_VH, self.bias_V)
        return self.form(raw_NV.to(torch.promote_types(raw_NV.dtype, torch.float32)))


def chunked_with_kl(
    head: nn.Module,
    hidden_NH: Tensor,
    targets_N: Tensor,
    scores: Scores,
    references: Sequence[ReferenceLogits],
    size: int,
) -> tuple[Tensor, ...]:
    """Log-probs, entropies, and KL(π‖reference) of each reference with its gradient; each (N,).

    Each chunk of `size` tokens is recomputed in the backward pass.
    """
    parts = []
    for first in range(0, hidden_NH.shape[0], size):
        rows = slice(first, first + size)
        own = [reference.rows(first, first + size) for reference in references]
        inputs = (head, hidden_NH[rows], targets_N[rows], scores, own)
        parts.append(checkpoint(_with_kl, *inputs, use_reentrant=False))
    return tuple(torch.cat(figures) for figures in zip(*parts, strict=True))


def _with_kl(
    head: nn.Module,
    hidden_NH: Tensor,
    targets_N: Tensor,
    scores: Scores,
    references: Sequence[ReferenceLogits],
) -> tuple[Tensor, ...]:
    logprobs_NV = scores.all(linear(hidden_NH, head.weight, head.bias))
    figures = list(scores.of(logprobs_NV, targets_N))
    for reference in references:
        with torch.no_grad():
            reference_NV = (reference.logits() / scores.temperature).log_softmax(-1)
        figures.append((logprobs_NV.exp() * (logprobs_NV - reference_NV)).sum(-1))
    return tuple(figures)
