"""What a model must do before training: its logits are understood, and packed sequences stay apart.

Each check is two forward passes over a few tokens, and a collective.
"""

from typing import Any

import torch

from srft_ray.errors import require
from srft_ray.train.deepspeed_engine import DeepSpeedEngine
from srft_ray.train.reference import ReferenceModel

TOKENS = 8


@torch.no_grad()
def check_model(
    model: DeepSpeedEngine | ReferenceModel, setting: str, threshold: float, packing: bool
) -> None:
    """Raises UserError for a model whose log-probs learners would compute wrongly.

    Args:
        setting: that names the model.
        threshold: of the mean difference of log-probs, in nats.
        packing: whether rows will hold several sequences.
    """
    name = type(model.policy.model).__name__
    own = _logprobs(model, 1)
    with model.policy.model_logits():
        difference = float((_logprobs(model, 1) - own).abs().mean())
    require(
        difference <= threshold,
        f"{setting} is a {name}, which changes its logits in a way that learners do not know (log-probs "
        f"differ by {difference:.1e}): choose another model, or extend LogitForm in srft_ray/models.py.",
    )
    if packing:
        difference = float((_logprobs(model, 2)[-len(own) :] - own).abs().mean())
        require(
            difference <= threshold,
            f"learner.packing=true does not suit {setting}, a {name}: log-probs of a sequence differ by "
            f"{difference:.1e} behind another sequence of the same row. Set it to false.",
        )


def _logprobs(model: DeepSpeedEngine | ReferenceModel, copies: int) -> Any:
    """Of the same few tokens, `copies` times one behind the other in one packed row."""
    first = torch.arange(1, TOKENS + 1, device=model.device)
    ids_BL = first.repeat(copies)[None]
    places = torch.arange(copies * TOKENS, device=model.device)
    position_ids_BL = (places % TOKENS)[None]
    positions_N = places[places % TOKENS > 0]
    rows_N = torch.zeros_like(positions_N)
    options = (False, (), False, position_ids_BL)
    return model.forward(ids_BL, rows_N, positions_N, 1.0, *options)[0]
