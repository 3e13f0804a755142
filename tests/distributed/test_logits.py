"""A model whose logits are changed in an unknown way is refused before training, also under ZeRO 3."""

from unittest.mock import patch

import pytest
import torch

from srft_ray.config.training import LearnerSection
from srft_ray.errors import UserError
from srft_ray.models import LogitForm
from tests.distributed.harness import spawn
from tests.unit.test_logprobs import make_model


def check(rank, world, zero_stage, knows_the_cap):
    """The message of the refusal; None if the model is accepted."""
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine

    model = make_model("Gemma2", {"final_logit_softcapping": 3.0})
    form = LogitForm.of(model.config) if knows_the_cap else LogitForm()
    with patch.object(LogitForm, "of", lambda config: form):
        engine = DeepSpeedEngine(model, LearnerSection(zero_stage=zero_stage), torch.float32)
    try:
        engine.check_logits(1e-3)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_only_what_is_unknown_is_refused(zero_stage):
    assert spawn(2, check, zero_stage, True) is None
    message = spawn(2, check, zero_stage, False)
    assert message.startswith("Gemma2ForCausalLM changes its logits in a way that learners do not know")
