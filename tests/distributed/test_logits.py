"""A model whose logits are changed in an unknown way, or that mixes packed sequences, is refused before
training."""

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2Model

from algorithms import GRPO, PPO
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


def refusal(rank, world, policy, algorithm, sections):
    """As a worker makes its learner, once for each section; the message of its refusal or None."""
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine
    from srft_ray.train.learner_models import make_learner

    messages = []
    for settings in sections:
        engine = DeepSpeedEngine(load(policy)[0], settings, torch.float32)
        job = SimpleNamespace(
            learner=settings,
            model=ModelSection(path=str(policy)),
            algorithm=algorithm,
            dtype="float32",
            ledger_tokens=False,
        )
        try:
            make_learner(job, engine, 0.1)
            assert all(value.isfinite().all() for _, value in engine.state())  # after an update of rate 0
            messages.append(None)
        except UserError as error:
            messages.append(str(error))
    return messages


def refusal_of_unknown_logits(*inputs):
    with patch.object(LogitForm, "of", lambda config: LogitForm()):
        return refusal(*inputs)


def refusal_of_mixed_sequences(*inputs):
    with patch.object(Gemma2Model, "forward", mixed(Gemma2Model.forward)):
        return refusal(*inputs)


def mixed(forward):
    return lambda self, position_ids=None, **inputs: forward(self, **inputs)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma")
    make_model("Gemma2", {"final_logit_softcapping": 3.0}).save_pretrained(folder)
    return str(folder)


def test_learners_check_a_reference_of_another_architecture(gemma, tiny_model):
    sections = [LearnerSection(reference=str(path)) for path in (tiny_model, gemma)]
    good, refused = spawn(1, refusal_of_unknown_logits, tiny_model, GRPO(kl_coefficient=0.1), sections)
    assert good is None
    assert refused.startswith("learner.reference is a Gemma2ForCausalLM, which changes its logits")


def test_learners_check_a_critic_of_another_architecture(gemma, tiny_model):
    sections = [LearnerSection(critic=gemma, packing=True, zero_stage=stage) for stage in (0, 3)]
    assert spawn(2, refusal, tiny_model, PPO(), sections) == [None, None]
    padded = LearnerSection(critic=gemma, packing=False)
    refused, refused_3, good = spawn(2, refusal_of_mixed_sequences, tiny_model, PPO(), [*sections, padded])
    assert refused.startswith(
        "learner.packing=true does not suit learner.critic, a Gemma2Model: hidden states"
    )
    assert refused_3.startswith("learner.packing=true does not suit learner.critic") and good is None
