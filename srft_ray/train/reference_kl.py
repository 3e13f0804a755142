"""KL of the policy to another model over the whole vocabulary, in chunks."""

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
    reference: ReferenceLogits,
    size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probs, entropies, KL(π‖reference)), each (N,), with the gradient of the last.

    Each chunk of `size` tokens is recomputed in the backward pass.
    """
    parts = []
    for first in range(0, hidden_NH.shape[0], size):
        rows = slice(first, first + size)
        inputs = (head, hidden_NH[rows], targets_N[rows], scores, reference.rows(first, first + size))
        parts.append(checkpoint(_with_kl, *inputs, use_reentrant=False))
    logprobs, entropies, kls = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies), torch.cat(kls)


def _with_kl(
    head: nn.Module, hidden_NH: Tensor, targets_N: Tensor, scores: Scores, reference: ReferenceLogits
) -> tuple[Tensor, Tensor, Tensor]:
    logprobs_NV = scores.all(linear(hidden_NH, head.weight, head.bias))
    with torch.no_grad():
        reference_NV = (reference.logits() / scores.temperature).log_softmax(-1)
    kl_N = (logprobs_NV.exp() * (logprobs_NV - reference_NV)).sum(-1)
    return (*scores.of(logprobs_NV, targets_N), kl_N)
