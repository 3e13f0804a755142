"""Log-probs and entropies of response tokens, in chunks: a long sequence's logits never exist at once."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from srft_ray.train.weight_gradients import linear


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
    ) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy of token `positions_N` of row `rows_N`, given its context; float32, (N,).

        Rows are right-padded; with causal attention no real token sees the padding, so there is no attention
        mask.
        """
        decoder = self.model.get_decoder()
        head = self.model.get_output_embeddings()
        hidden_BLH = decoder(input_ids=input_ids_BL, use_cache=False).last_hidden_state
        # The hidden state of a position predicts the token behind it.
        hidden_NH = hidden_BLH[rows_N, positions_N - 1]
        targets_N = input_ids_BL[rows_N, positions_N]
        return head(hidden_NH, targets_N, temperature, self.logit_chunk_mb, entropy_gradient)


def chunked_logprobs(
    head: nn.Module,
    hidden_NH: Tensor,
    targets_N: Tensor,
    temperature: float,
    chunk_mb: float,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies (nats, float32, (N,)) of targets under softmax(head(hidden) / temperature).

    At most `chunk_mb` MiB of float32 logits exist at once: with several chunks each is recomputed in the
    backward pass.

    Args:
        entropy_gradient: whether the entropies have a gradient; the log-probs always have one.
    """
    vocabulary = head.out_features
    size = max(1, int(chunk_mb * 2**20) // (4 * vocabulary))
    if hidden_NH.shape[0] <= size:
        return _logprobs(head, hidden_NH, targets_N, temperature, entropy_gradient)
    parts = [
        checkpoint(_logprobs, head, hidden, targets, temperature, entropy_gradient, use_reentrant=False)
        for hidden, targets in zip(hidden_NH.split(size), targets_N.split(size), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _logprobs(
    head: nn.Module, hidden_NH: Tensor, targets_N: Tensor, temperature: float, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    logits_NV = linear(hidden_NH, head.weight, head.bias)
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    logprobs_NV = logits_NV.log_softmax(-1)
    if entropy_gradient:
        entropies_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    else:
        with torch.no_grad():
            entropies_N = -logprobs_NV.exp().mul_(logprobs_NV).sum(-1)
    return logprobs_NV.gather(-1, targets_N[:, None])[:, 0], entropies_N
