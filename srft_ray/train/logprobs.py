"""Log-probs and entropies of response tokens, in chunks: a long sequence's logits never exist at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from srft_ray.models import LogitForm
from srft_ray.train.reference_kl import ReferenceLogits, chunked_with_kl
from srft_ray.train.scores import Scores
from srft_ray.train.weight_gradients import linear, matrix_product

LEAST_TOKENS = 384  # of a chunk whose size is not set; see `chunk_tokens`
LEAST_BYTES = 2**26


class PolicyModel(nn.Module):
    """A causal language model that returns log-probs and entropies of given tokens instead of logits."""

    def __init__(self, model: nn.Module, logit_chunk_mb: float | None) -> None:
        super().__init__()
        self.model = model
        self.logit_chunk_mb = logit_chunk_mb
        self.form = LogitForm.of(model.config)
        self._uses_model_logits = False
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
        references: Sequence[ReferenceLogits] = (),
        logits_only: bool = False,
    ) -> Any:
        """Log-prob and entropy of token `positions_N` of row `rows_N`, given its context; float32, (N,).

        For each reference there is a further figure, KL(π‖reference) over the vocabulary, with gradient.
        With `logits_only` the result is this model's own ReferenceLogits instead. Rows are right-padded; with
        causal attention no real token sees the padding, so there is no attention mask.
        """
        if self._uses_model_logits:
            logits_NV = self.model(input_ids=input_ids_BL, use_cache=False).logits[rows_N, positions_N - 1]
            scores = Scores(LogitForm(), temperature, entropy_gradient)
            return scores(logits_NV, input_ids_BL[rows_N, positions_N])
        decoder = self.model.get_decoder()
        head = self.model.get_output_embeddings()
        hidden_BLH = decoder(input_ids=input_ids_BL, use_cache=False).last_hidden_state
        # The hidden state of a position predicts the token behind it.
        hidden_NH = hidden_BLH[rows_N, positions_N - 1]
        targets_N = None if logits_only else input_ids_BL[rows_N, positions_N]
        settings = (temperature, self.logit_chunk_mb, entropy_gradient, self.form)
        return head(hidden_NH, targets_N, *settings, references)

    @contextmanager
    def model_logits(self) -> Iterator[None]:
        """Within it, log-probs come from the model's own logits, all at once."""
        head = self.model.get_output_embeddings()
        chunked = head.__dict__.pop("forward")
        self._uses_model_logits = True
        try:
            yield
        finally:
            self._uses_model_logits = False
            head.forward = chunked


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
    form: LogitForm | None = None,
    references: Sequence[ReferenceLogits] = (),
) -> Any:
    """Log-probs and entropies of targets under softmax(form(head(hidden)) / temperature).

    Both are in nats and float32, (N,). For each reference also KL(π‖reference), both at the same
    temperature. Without targets: ReferenceLogits.

    Args:
        chunk_mb: MiB of float32 logits that exist at the same time; with several chunks each is recomputed in
            the backward pass. None: as `chunk_tokens` says.
        entropy_gradient: whether the entropies have a gradient; the log-probs always have one.
        form: what the model does with its logits; None: nothing.
    """
    if targets_N is None:
        return ReferenceLogits.of(head, hidden_NH, form)
    size = chunk_tokens(head.out_features, chunk_mb)
    scores = Scores(form or LogitForm(), temperature, entropy_gradient)
    if references:
        return chunked_with_kl(head, hidden_NH, targets_N, scores, references, size)
    if hidden_NH.shape[0] <= size:
        return scores(linear(hidden_NH, head.weight, head.bias), targets_N)
    logprobs_N, entropies_N = _Chunks.apply(hidden_NH, head.weight, head.bias, targets_N, scores, size)
    return logprobs_N, entropies_N if entropy_gradient else entropies_N.detach()


class _Chunks(torch.autograd.Function):
    """`Scores` of a head, chunk by chunk; the weight's gradient is summed in one float32 matrix."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden_NH: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets_N: Tensor,
        scores: Scores,
        size: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden_NH, weight, bias, targets_N)
        ctx.scores, ctx.size = scores, size
        parts = [
            scores.in_place(linear(hidden, weight, bias), targets)
            for hidden, targets in zip(hidden_NH.split(size), targets_N.split(size), strict=True)
        ]
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    @staticmethod
    def backward(ctx: FunctionCtx, of_logprobs_N: Tensor, of_entropies_N: Tensor) -> tuple[Any, ...]:
        hidden_NH, weight, bias, targets_N = ctx.saved_tensors
        wide = torch.promote_types(weight.dtype, torch.float32)
        of_hidden_NH = torch.empty_like(hidden_NH)
        of_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        of_bias = None if bias is None else torch.zeros(bias.shape, dtype=wide, device=bias.device)
        for first in range(0, len(targets_N), ctx.size):
            rows = slice(first, first + ctx.size)
            of_raw_NV = _gradient_of_raw(
                ctx.scores,
                linear(hidden_NH[rows], weight, bias),
                targets_N[rows],
                of_logprobs_N[rows],
                of_entropies_N[rows],
            )
            of_hidden_NH[rows] = of_raw_NV @ weight
            of_weight += matrix_product(of_raw_NV.T, hidden_NH[rows])
            if of_bias is not None:
                of_bias += of_raw_NV.sum(0, dtype=wide)
            del of_raw_NV  # before the next chunk is computed, not after it
        return of_hidden_NH, of_weight, of_bias, None, None, None


def _gradient_of_raw(
    scores: Scores, raw_NV: Tensor, targets_N: Tensor, of_logprobs_N: Tensor, of_entropies_N: Tensor
) -> Tensor:
    """Of the raw logits of one chunk, in their type.

    With p the softmax and H its entropy: d log p_t = 1_t - p, and d H = -p (log p + H).
    """
    logprobs_NV = scores.all_in_place(raw_NV)
    if scores.entropy_gradient:
        probs_NV = logprobs_NV.exp()
        entropies_N1 = -(probs_NV * logprobs_NV).sum(-1, keepdim=True)
        factor_NV = logprobs_NV.add_(entropies_N1).mul_(of_entropies_N[:, None]).add_(of_logprobs_N[:, None])
        gradient_NV = probs_NV.mul_(factor_NV).neg_()
    else:
        gradient_NV = logprobs_NV.exp_().mul_(of_logprobs_N[:, None]).neg_()
    gradient_NV.scatter_add_(-1, targets_N[:, None], of_logprobs_N[:, None].to(gradient_NV.dtype))
    if scores.temperature != 1.0:
        gradient_NV /= scores.temperature
    return scores.form.backward(raw_NV, gradient_NV).to(raw_NV.dtype)
