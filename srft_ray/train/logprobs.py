"""Log-probs and entropies of response tokens, in chunks: a long sequence's logits never exist at once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from srft_ray.models import LogitForm
from srft_ray.train.weight_gradients import linear, matrix_product

LEAST_TOKENS = 384  # of a chunk whose size is not set; see `chunk_tokens`
LEAST_BYTES = 2**26
PLAIN = LogitForm()


@dataclass(frozen=True)
class ReferenceLogits:
    """What a model's logits of the scored tokens are made of: hidden states and its whole head."""

    hidden_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None
    form: LogitForm = PLAIN

    @classmethod
    def of(cls, head: nn.Module, hidden_NH: Tensor, form: LogitForm = PLAIN) -> "ReferenceLogits":
        """Within a call of the head: after it, ZeRO-3 takes the weight apart, so that a copy is kept."""
        partitioned = hasattr(head.weight, "ds_id")
        kept = [
            parameter.detach().clone() if partitioned and parameter is not None else parameter
            for parameter in (head.weight, head.bias)
        ]
        return cls(hidden_NH, *kept, form)

    def rows(self, chosen: slice) -> "ReferenceLogits":
        return replace(self, hidden_NH=self.hidden_NH[chosen])

    @torch.no_grad()
    def log_softmax(self, temperature: float) -> Tensor:
        """(N, V)."""
        raw_NV = linear(self.hidden_NH, self.weight_VH, self.bias_V)
        return _logits(raw_NV, self.form, temperature).log_softmax(-1)


@dataclass(frozen=True)
class Scores:
    """How log-probs and entropies follow from the raw logits of a head."""

    form: LogitForm
    temperature: float
    entropy_gradient: bool

    def __call__(
        self, raw_NV: Tensor, targets_N: Tensor, references: Sequence[ReferenceLogits] = ()
    ) -> tuple[Tensor, ...]:
        logprobs_NV = _logits(raw_NV, self.form, self.temperature).log_softmax(-1)
        if self.entropy_gradient:
            entropies_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
        else:
            with torch.no_grad():
                entropies_N = -logprobs_NV.exp().mul_(logprobs_NV).sum(-1)
        known = [reference.log_softmax(self.temperature) for reference in references]
        kls = [(logprobs_NV.exp() * (logprobs_NV - known_NV)).sum(-1) for known_NV in known]
        return logprobs_NV.gather(-1, targets_N[:, None])[:, 0], entropies_N, *kls

    def in_place(
        self, raw_NV: Tensor, targets_N: Tensor, references: Sequence[ReferenceLogits] = ()
    ) -> tuple[Tensor, ...]:
        """The same without gradient and with less memory; it may overwrite `raw_NV`."""
        logprobs_NV = self.all_in_place(raw_NV)
        logprobs_N = logprobs_NV.gather(-1, targets_N[:, None])[:, 0]
        kls = [
            logprobs_NV.exp().mul_(logprobs_NV - reference.log_softmax(self.temperature)).sum(-1)
            for reference in references
        ]
        return logprobs_N, -logprobs_NV.exp().mul_(logprobs_NV).sum(-1), *kls

    def all_in_place(self, raw_NV: Tensor) -> Tensor:
        """Log-probs of the whole vocabulary; it may overwrite `raw_NV` unless the form caps it."""
        logits_NV = self.form(_wide(raw_NV))
        if self.temperature != 1.0:
            logits_NV /= self.temperature
        logits_NV -= logits_NV.logsumexp(-1, keepdim=True)
        return logits_NV


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _logits(raw_NV: Tensor, form: LogitForm, temperature: float) -> Tensor:
    logits_NV = form(_wide(raw_NV))
    return logits_NV if temperature == 1.0 else logits_NV / temperature


def chunk_tokens(vocabulary: int, chunk_mb: float | None) -> int:
    """How many tokens have logits at the same time.

    For an element of the head's weight, a chunk moves about 22 bytes: the bfloat16 weight is read three
    times, and its float32 gradient is computed and added. It also makes 8 operations for each token, two in
    each of four products. With 384 tokens the bytes take a GPU of 3.3e12 bytes and 600e12 operations per
    second 7 ps, and the operations 5 ps; with 110 tokens, which are 64 MiB of logits at a vocabulary of
    152,000, they take 7 and 1.5. More tokens need more memory: two float32 matrices of tokens times
    vocabulary, 2 x 223 MiB with 384.
    """
    if chunk_mb is not None:
        return max(1, int(chunk_mb * 2**20) // (4 * vocabulary))
    return max(LEAST_TOKENS, LEAST_BYTES // (4 * vocabulary))


def chunked_logprobs(
    head: nn.Module,
    hidden_NH: Tensor,
    targets_N: Tensor | None,
    temperature: float,
    chunk_mb: float | None,
    entropy_gradient: bool = False,
    references: Sequence[ReferenceLogits] = (),
    form: LogitForm = PLAIN,
) -> Any:
    """Log-probs and entropies of targets under softmax(form(head(hidden)) / temperature).

    Both are in nats and float32, (N,). For each reference also KL(π‖reference), both at the same
    temperature. Without targets: ReferenceLogits.

    Args:
        chunk_mb: MiB of float32 logits that exist at the same time; with several chunks each is recomputed in
            the backward pass. None: as `chunk_tokens` says.
        entropy_gradient: whether the entropies have a gradient; the log-probs always have one.
        form: what the model does with its logits.
    """
    if targets_N is None:
        return ReferenceLogits.of(head, hidden_NH, form)
    size = chunk_tokens(head.out_features, chunk_mb)
    scores = Scores(form, temperature, entropy_gradient)
    if hidden_NH.shape[0] <= size:
        return scores(linear(hidden_NH, head.weight, head.bias), targets_N, references)
    inputs = (hidden_NH, head.weight, head.bias, targets_N)
    logprobs_N, entropies_N, *kls = _Chunks.apply(*inputs, references, scores, size)
    return logprobs_N, entropies_N if entropy_gradient else entropies_N.detach(), *kls


class _Chunks(torch.autograd.Function):
    """`Scores` of a head, chunk by chunk; the weight's gradient is summed in one float32 matrix."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_NH: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets_N: Tensor,
        references: Sequence[ReferenceLogits],
        scores: Scores,
        size: int,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(hidden_NH, weight, bias, targets_N)
        ctx.references, ctx.scores, ctx.size = references, scores, size
        parts = [
            scores.in_place(
                linear(hidden_NH[rows], weight, bias), targets_N[rows], [r.rows(rows) for r in references]
            )
            for rows in _chunks(targets_N, size)
        ]
        return tuple(torch.cat(figures) for figures in zip(*parts, strict=True))

    @staticmethod
    def backward(ctx: FunctionCtx, *of_figures: Tensor) -> tuple[Any, ...]:
        hidden_NH, weight, bias, targets_N = ctx.saved_tensors
        wide = torch.promote_types(weight.dtype, torch.float32)
        of_hidden_NH = torch.empty_like(hidden_NH)
        # A frozen head, as beside adapters, has no gradient.
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        of_bias = None if bias is None else torch.zeros(bias.shape, dtype=wide, device=bias.device)
        for rows in _chunks(targets_N, ctx.size):
            of_raw_NV = _gradient_of_raw(
                ctx.scores,
                linear(hidden_NH[rows], weight, bias),
                targets_N[rows],
                [reference.rows(rows) for reference in ctx.references],
                [of_figure_N[rows, None] for of_figure_N in of_figures],
            )
            of_hidden_NH[rows] = of_raw_NV @ weight
            if of_weight is not None:
                of_weight += matrix_product(of_raw_NV.T, hidden_NH[rows])
            if of_bias is not None:
                of_bias += of_raw_NV.sum(0, dtype=wide)
            del of_raw_NV  # before the next chunk is computed, not after it
        return of_hidden_NH, of_weight, of_bias, None, None, None, None


def _chunks(targets_N: Tensor, size: int) -> list[slice]:
    return [slice(first, first + size) for first in range(0, len(targets_N), size)]


def _gradient_of_raw(
    scores: Scores,
    raw_NV: Tensor,
    targets_N: Tensor,
    references: Sequence[ReferenceLogits],
    of_figures_N1: Sequence[Tensor],
) -> Tensor:
    """Of the raw logits of one chunk, in their type.

    With p the softmax, H its entropy and q a reference: d log p_t = 1_t - p, d H = -p (log p + H), and
    d KL = p (log p - log q - KL).
    """
    of_logprobs_N1, of_entropies_N1 = of_figures_N1[:2]
    logprobs_NV = scores.all_in_place(raw_NV)
    if not scores.entropy_gradient and not references:
        gradient_NV = logprobs_NV.exp_().mul_(of_logprobs_N1).neg_()
    else:
        probs_NV = logprobs_NV.exp()
        factor_NV = (-of_logprobs_N1).expand_as(probs_NV).clone()
        if scores.entropy_gradient:
            entropies_N1 = -(probs_NV * logprobs_NV).sum(-1, keepdim=True)
            factor_NV -= of_entropies_N1 * (logprobs_NV + entropies_N1)
        for reference, of_kl_N1 in zip(references, of_figures_N1[2:], strict=True):
            ratio_NV = logprobs_NV - reference.log_softmax(scores.temperature)
            factor_NV += of_kl_N1 * (ratio_NV - (probs_NV * ratio_NV).sum(-1, keepdim=True))
        gradient_NV = probs_NV.mul_(factor_NV)
    gradient_NV.scatter_add_(-1, targets_N[:, None], of_logprobs_N1.to(gradient_NV.dtype))
    if scores.temperature != 1.0:
        gradient_NV /= scores.temperature
    return scores.form.backward(raw_NV, gradient_NV).to(raw_NV.dtype)
