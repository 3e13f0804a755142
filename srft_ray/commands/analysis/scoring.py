"""Teacher-forced distributions of models over the tokens of given texts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srft_ray.commands.analysis.texts import Text, length_of
from srft_ray.config.schema import ModelSection
from srft_ray.models import load_model

BATCH_TOKENS = 2048  # of a forward pass, with padding


def load(path: str | Path, trust_remote_code: bool = False) -> Any:
    """A model for scoring, in float32, on the GPU if there is one."""
    section = ModelSection(path=str(path), trust_remote_code=trust_remote_code)
    model = load_model(section, torch.float32, activation_checkpointing=False)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def log_distributions(model: Any, texts: Sequence[Text]) -> Iterator[Tensor]:
    """Of each text in turn, log-probs of the whole vocabulary at each response token: float32 (T, V)."""
    batch: list[Text] = []
    for text in texts:
        longest = max(map(length_of, [*batch, text]))
        if batch and longest * (len(batch) + 1) > BATCH_TOKENS:
            yield from _of_batch(model, batch)
            batch = []
        batch.append(text)
    if batch:
        yield from _of_batch(model, batch)


@torch.no_grad()
def _of_batch(model: Any, batch: Sequence[Text]) -> list[Tensor]:
    longest = max(map(length_of, batch))
    ids_BL = torch.zeros((len(batch), longest), dtype=torch.int64)
    mask_BL = torch.zeros_like(ids_BL)
    for row, text in enumerate(batch):
        ids = [*text.prompt_ids, *text.response_ids]
        ids_BL[row, : len(ids)] = torch.tensor(ids)
        mask_BL[row, : len(ids)] = 1
    device = model.device
    logits = model(
        input_ids=ids_BL.to(device),
        attention_mask=mask_BL.to(device),
        use_cache=False,
    ).logits
    found = []
    for row, text in enumerate(batch):
        first = len(text.prompt_ids) - 1
        scored = logits[row, first : first + len(text.response_ids)]
        found.append(scored.float().log_softmax(dim=-1))
    return found


def chosen(log_TV: Tensor, text: Text) -> Tensor:
    """Log-probs of the tokens of the response (T,)."""
    ids_T = torch.tensor(list(text.response_ids), device=log_TV.device)
    return log_TV.gather(1, ids_T[:, None])[:, 0]


def entropy(log_TV: Tensor) -> Tensor:
    """In nats (T,)."""
    return -(log_TV.exp() * log_TV).sum(dim=-1)


def divergence(p_TV: Tensor, q_TV: Tensor) -> Tensor:
    """KL(p‖q) of log-probs, in nats (T,)."""
    return (p_TV.exp() * (p_TV - q_TV)).sum(dim=-1)


def jensen_shannon(p_TV: Tensor, q_TV: Tensor) -> Tensor:
    """The Jensen-Shannon divergence of log-probs, in nats, at most log 2 (T,)."""
    middle_TV = torch.logaddexp(p_TV, q_TV) - torch.log(torch.tensor(2.0))
    return (divergence(p_TV, middle_TV) + divergence(q_TV, middle_TV)) / 2


def rank(log_TV: Tensor, text: Text) -> Tensor:
    """How many tokens are likelier than that of the text (T,); 0: it is the likeliest."""
    own_T = chosen(log_TV, text)
    return (log_TV > own_T[:, None]).sum(dim=-1)
