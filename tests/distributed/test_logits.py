"""A model whose logits are changed in an unknown way, or that mixes packed sequences, is refused before
training."""

from unittest.mock import patch

import torch

from srft_ray.config.training import LearnerSection
from srft_ray.errors import UserError
from srft_ray.models import LogitForm
from tests.distributed.harness import spawn
from tests.unit.test_logprobs import make_model


def check(rank, world, zero_stage, knows_the_cap, mixes=False):
    """The message of the refusal; None if the model is accepted.

    `mixes`: the model ignores that positions begin again.
    """
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine
    from srft_ray.train.model_checks import check_model

    model = make_model("Gemma2", {"final_logit_softcapping": 3.0})
    form = LogitForm.of(model.config) if knows_the_cap else LogitForm()
    with patch.object(LogitForm, "of", lambda config: form):
        if mixes:
            decoder = model.get_decoder()
            ordinary = decoder.forward
            decoder.forward = lambda position_ids=None, **inputs: ordinary(**inputs)
        engine = DeepSpeedEngine(model, LearnerSection(zero_stage=zero_stage), torch.float32)
    try:
        check_model(engine, 1e-3, packing=True)
    except UserError as error:
        return str(error)
    return None


def all_checks(rank, world):
    return [check(rank, world, *case) for case in CASES]


CASES = [(0, True), (3, True), (0, False), (3, False), (0, True, True)]


def test_only_what_is_unknown_is_refused():
    good, good_3, unknown, unknown_3, mixing = spawn(2, all_checks)
    assert good is None and good_3 is None
    assert unknown.startswith("Gemma2ForCausalLM changes its logits in a way that learners do not know")
    assert unknown_3 == unknown
    assert mixing.startswith("learner.packing=true does not suit Gemma2ForCausalLM")
