"""What a model must do before training: its logits are understood, and packed sequences stay apart.

Each check is two forward passes over a few tokens, and a collective.
"""

from typing import Any

import torch
from torch import Tensor

from srft_ray.errors import require
from srft_ray.train.critic import CriticEngine
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
        _require_packing(
            difference <= threshold, setting, name, f"log-probs of a sequence differ by {difference:.1e}"
        )


@torch.no_grad()
def check_critic(critic: CriticEngine, threshold: float) -> None:
    """Raises UserError for a critic whose packed sequences see each other.

    Its head is zero at first, so that its hidden states are compared and not its values.

    Args:
        threshold: of the mean difference of hidden states, as a share of their mean size.
    """
    decoder = critic.policy.model["decoder"]
    with critic.policy.hidden_states():
        own = critic.forward(*_tokens(1, critic.device))[0]
        behind = critic.forward(*_tokens(2, critic.device))[0][-len(own) :]
    share = float((behind - own).abs().mean() / own.abs().mean())
    what = f"hidden states of a sequence differ by {share:.1%}"
    _require_packing(share <= threshold, "learner.critic", type(decoder).__name__, what)


def _require_packing(suits: bool, setting: str, name: str, what: str) -> None:
    require(
        suits,
        f"learner.packing=true does not suit {setting}, a {name}: {what} behind another sequence of the same "
        "row. Set it to false.",
    )


def _logprobs(model: DeepSpeedEngine | ReferenceModel, copies: int) -> Any:
    ids_BL, rows_N, positions_N, position_ids_BL = _tokens(copies, model.device)
    return model.forward(ids_BL, rows_N, positions_N, 1.0, position_ids_BL=position_ids_BL)[0]


def _tokens(copies: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same few tokens, `copies` times one behind the other in one packed row: ids, the rows and positions
    that are scored, and position ids."""
    ids_BL = torch.arange(1, TOKENS + 1, device=device).repeat(copies)[None]
    places = torch.arange(copies * TOKENS, device=device)
    positions_N = places[places % TOKENS > 0]
    return ids_BL, torch.zeros_like(positions_N), positions_N, (places % TOKENS)[None]
