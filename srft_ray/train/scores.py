"""What is made of the logits of a head: log-probs and entropies of tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from srft_ray.models import LogitForm


@dataclass(frozen=True)
class Scores:
    """How log-probs and entropies follow from the raw logits of a head."""

    form: LogitForm
    temperature: float
    entropy_gradient: bool

    def __call__(self, raw_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        return self.of(self.all(raw_NV), targets_N)

    def all(self, raw_NV: Tensor) -> Tensor:
        """Log-probs of the whole vocabulary, (N, V), with gradient."""
        logits_NV = self.form(_wide(raw_NV))
        if self.temperature != 1.0:
            logits_NV = logits_NV / self.temperature
        return logits_NV.log_softmax(-1)

    def of(self, logprobs_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs of the targets, and entropies."""
        if self.entropy_gradient:
            entropies_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
        else:
            with torch.no_grad():
                entropies_N = -logprobs_NV.exp().mul_(logprobs_NV).sum(-1)
        return logprobs_NV.gather(-1, targets_N[:, None])[:, 0], entropies_N

    def in_place(self, raw_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        """The same without gradient and with less memory; it may overwrite `raw_NV`."""
        logprobs_NV = self.all_in_place(raw_NV)
        logprobs_N = logprobs_NV.gather(-1, targets_N[:, None])[:, 0]
        return logprobs_N, -logprobs_NV.exp().mul_(logprobs_NV).sum(-1)

    def all_in_place(self, raw_NV: Tensor) -> Tensor:
        """Log-probs of the whole vocabulary; it may overwrite `raw_NV` unless the form caps it."""
        logits_NV = self.form(_wide(raw_NV))
        if self.temperature != 1.0:
            logits_NV /= self.temperature
        logits_NV -= logits_NV.logsumexp(-1, keepdim=True)
        return logits_NV


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
