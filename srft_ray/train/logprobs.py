"""Log-probs and entropies of response tokens, in chunks: a long sequence's logits never exist at once."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from srft_ray.train.weight_gradients import linear


@dataclass(frozen=True)
class ReferenceLogits:
    """What a model's logits of the scored tokens are made of: hidden states and its whole head."""

    hidden_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None

    @classmethod
    def of(cls, head: nn.Module, hidden_NH: Tensor) -> "ReferenceLogits":
        """Within a call of the head: after it, ZeRO-3 takes the weight apart, so that a copy is kept."""
        partitioned = hasattr(head.weight, "ds_id")
        kept = [
            parameter.detach().clone() if partitioned and parameter is not None else parameter
            for parameter in (head.weight, head.bias)
        ]
        return cls(hidden_NH, *kept)

    def rows(self, first: int, end: int) -> "ReferenceLogits":
        return replace(self, hidden_NH=self.hidden_NH[first:end])


class PolicyModel(nn.Module):
    """A causal language model that returns log-probs and entropies of given tokens instead of logits."""

    def __init__(self, model: nn.Module, logit_chunk_mb: int) -> None:
        super().__init__()
        self.model = model
        self.logit_chunk_mb = logit_chunk_mb
        # The chunks run inside one call of the head, so that ZeRO-3 gathers its weight once on every rank,
        # however many chunks a rank has.
        head = model.get_output_embeddings()
        head.forward = partial(chunked_logprobs, head)

    def forward(
        self,
        input_ids_BL: Tensor,
        rows_N: Tensor,
        positions_N: Tensor,
        temperature: float,
        entropy_gradient: bool = False,
        reference: ReferenceLogits | None = None,
        logits_only: bool = False,
    ) -> Any:
        """Log-prob and entropy of token `positions_N` of row `rows_N`, given its context; float32, (N,).

        With `reference` there is a third figure, KL(π‖reference) over the whole vocabulary, with gradient.
        With `logits_only` the result is this model's own ReferenceLogits instead. Rows are right-padded; with
        causal attention no real token sees the padding, so there is no attention mask.
        """
        decoder = self.model.get_decoder()
        head = self.model.get_output_embeddings()
        hidden_BLH = decoder(input_ids=input_ids_BL, use_cache=False).last_hidden_state
        # The hidden state of a position predicts the token behind it.
        hidden_NH = hidden_BLH[rows_N, positions_N - 1]
        if logits_only:
            return head(hidden_NH, None, temperature, self.logit_chunk_mb)
        targets_N = input_ids_BL[rows_N, positions_N]
        return head(hidden_NH, targets_N, temperature, self.logit_chunk_mb, entropy_gradient, reference)


def chunked_logprobs(
    head: nn.Module,
    hidden_NH: Tensor,
    targets_N: Tensor | None,
    temperature: float,
    chunk_mb: float,
    entropy_gradient: bool = False,
    reference: ReferenceLogits | None = None,
) -> Any:
    """Log-probs and entropies (nats, float32, (N,)) of targets under softmax(head(hidden) / temperature).

    With `reference` also KL(π‖reference), both at the same temperature. Without targets: ReferenceLogits.

    At most `chunk_mb` MiB of float32 logits exist at once: with several chunks each is recomputed in the
    backward pass.

    Args:
        entropy_gradient: whether the entropies have a gradient; the log-probs always have one.
    """
    if targets_N is None:
        return ReferenceLogits.of(head, hidden_NH)
    vocabulary = head.out_features
    size = max(1, int(chunk_mb * 2**20) // (4 * vocabulary))
    if hidden_NH.shape[0] <= size:
        return _logprobs(head, hidden_NH, targets_N, temperature, entropy_gradient, reference)
    parts = []
    for rows in torch.arange(hidden_NH.shape[0], device=hidden_NH.device).split(size):
        chunk = (int(rows[0]), int(rows[-1]) + 1)
        own = reference and reference.rows(*chunk)
        inputs = (head, hidden_NH[slice(*chunk)], targets_N[slice(*chunk)])
        parts.append(checkpoint(_logprobs, *inputs, temperature, entropy_gradient, own, use_reentrant=False))
    return tuple(torch.cat(figures) for figures in zip(*parts, strict=True))


def _logprobs(
    head: nn.Module,
    hidden_NH: Tensor,
    targets_N: Tensor,
    temperature: float,
    entropy_gradient: bool,
    reference: ReferenceLogits | None = None,
) -> tuple[Tensor, ...]:
    logprobs_NV = _log_softmax(hidden_NH, head.weight, head.bias, temperature)
    if entropy_gradient:
        entropies_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    else:
        with torch.no_grad():
            entropies_N = -logprobs_NV.exp().mul_(logprobs_NV).sum(-1)
    found = (logprobs_NV.gather(-1, targets_N[:, None])[:, 0], entropies_N)
    if reference is None:
        return found
    with torch.no_grad():
        reference_NV = _log_softmax(reference.hidden_NH, reference.weight_VH, reference.bias_V, temperature)
    return (*found, (logprobs_NV.exp() * (logprobs_NV - reference_NV)).sum(-1))


def _log_softmax(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, temperature: float) -> Tensor:
    logits_NV = linear(hidden_NH, weight_VH, bias_V)
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    return logits_NV.log_softmax(-1)
