"""A model whose logits are changed in an unknown way, or that mixes packed sequences, is refused before
training."""

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from algorithms import GRPO
from srft_ray.config.schema import ModelSection
from srft_ray.config.training import LearnerSection
from srft_ray.errors import UserError
from srft_ray.models import LogitForm
from tests.distributed.harness import load, spawn
from tests.unit.test_logprobs import make_model


def check(rank, world, setting, zero_stage, knows_the_cap, mixes=False):
    """The message of the refusal; None if the model is accepted.

    `mixes`: the model ignores that positions begin again.
    """
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine
    from srft_ray.train.model_checks import check_model
    from srft_ray.train.reference import ReferenceModel

    model = make_model("Gemma2", {"final_logit_softcapping": 3.0})
    form = LogitForm.of(model.config) if knows_the_cap else LogitForm()
    with patch.object(LogitForm, "of", lambda config: form):
        if mixes:
            decoder = model.get_decoder()
            ordinary = decoder.forward
            decoder.forward = lambda position_ids=None, **inputs: ordinary(**inputs)
        learner = LearnerSection(zero_stage=zero_stage)
        if setting == POLICY:
            made = DeepSpeedEngine(model, learner, torch.float32)
        else:
            made = ReferenceModel(model, learner, torch.float32, torch.device("cpu"))
    try:
        check_model(made, setting, 1e-3, packing=True)
    except UserError as error:
        return str(error)
    return None


def all_checks(rank, world, setting):
    return [check(rank, world, setting, *case) for case in CASES]


POLICY, REFERENCE = "model.path", "learner.reference"
CASES = [(0, True), (3, True), (0, False), (3, False), (0, True, True)]


@pytest.mark.parametrize("setting", [POLICY, REFERENCE])
def test_only_what_is_unknown_is_refused(setting):
    good, good_3, unknown, unknown_3, mixing = spawn(2, all_checks, setting)
    assert good is None and good_3 is None
    assert unknown.startswith(
        f"{setting} is a Gemma2ForCausalLM, which changes its logits in a way that learners do not know"
    )
    assert unknown_3 == unknown
    assert mixing.startswith(f"learner.packing=true does not suit {setting}, a Gemma2ForCausalLM")


def make_learner(rank, world, policy, reference):
    """As a worker makes its learner, from the files of the reference; the message of its refusal or None."""
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine
    from srft_ray.train.worker import LearnerWorker

    model, _ = load(policy)
    settings = LearnerSection(reference=str(reference))
    worker = object.__new__(LearnerWorker)
    worker.engine = DeepSpeedEngine(model, settings, torch.float32)
    worker.job = SimpleNamespace(
        learner=settings,
        model=ModelSection(path=str(policy)),
        algorithm=GRPO(kl_coefficient=0.1),
        dtype="float32",
        ledger_tokens=False,
    )
    with patch.object(LogitForm, "of", lambda config: LogitForm()):
        try:
            worker._make_learner(torch.float32, 0.1)
        except UserError as error:
            return str(error)
    return None


def test_learners_check_a_reference_of_another_architecture(tmp_path, tiny_model):
    make_model("Gemma2", {"final_logit_softcapping": 3.0}).save_pretrained(tmp_path)
    assert spawn(1, make_learner, tiny_model, tiny_model) is None
    refused = spawn(1, make_learner, tiny_model, tmp_path)
    assert refused.startswith("learner.reference is a Gemma2ForCausalLM, which changes its logits")
