"""Adapters in checkpoints and publications, on the real engine."""

import json
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from transformers import AutoModelForCausalLM

from srft_ray.config.rollout import RolloutSection
from srft_ray.config.schema import ModelSection
from srft_ray.models import load_model
from srft_ray.sync.fingerprint import fingerprint
from srft_ray.sync.versions import LearnerStart
from srft_ray.train.lora import count_adapter_parameters
from tests.distributed import low_rank, test_checkpoint
from tests.distributed.harness import difference, spawn

STEPS, STOP, RANK = test_checkpoint.STEPS, test_checkpoint.STOP, 4


def case(zero, dtype=torch.float32):
    return replace(test_checkpoint.case(zero, dtype=dtype), lora=RANK)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_model):
    """An uninterrupted run of two learners under ZeRO 2 that left a checkpoint half-way."""
    folder = tmp_path_factory.mktemp("saved")
    losses, weights = spawn(2, test_checkpoint.train, tiny_model, folder, case(2), 0, STEPS, STOP)
    return folder, losses, weights


@pytest.mark.parametrize(
    ("world", "zero"), [(2, 2), (1, 3), (1, 0), pytest.param(4, 3, marks=pytest.mark.full)]
)
def test_other_learners_and_zero_stages_go_on(saved, tiny_model, world, zero):
    folder, losses, weights = saved
    continued, after = spawn(world, test_checkpoint.train, tiny_model, folder, case(zero), STOP, STEPS, None)
    worst = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(continued, losses[STOP:], strict=True))
    print(f"adapters, 2 learners, ZeRO 2 -> {world} learners, ZeRO {zero}: losses within {worst:.1e}")
    assert worst <= 1e-5
    assert difference(after, {name: value.double() for name, value in weights.items()}) <= 1e-5
    if (world, zero) == (2, 2):
        assert continued == losses[STOP:] and all(torch.equal(after[name], weights[name]) for name in weights)


def test_a_checkpoint_has_the_adapter_and_the_merged_model(saved, tiny_model):
    from peft import PeftModel

    folder = saved[0] / "run/checkpoints" / f"step-{STOP}"
    files = json.loads((folder / "complete.json").read_text())["files"]
    names = {name for name in files if name.startswith("adapter/")}
    assert names == {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    # The frozen weights are in hf/ alone: what is to be resumed are the adapters and their moments.
    numbers = count_adapter_parameters(ModelSection(str(tiny_model), max_length=128), case(2).learner().lora)
    state = sum(entry["bytes"] for name, entry in files.items() if name.startswith("state-"))
    assert 3 * 4 * numbers <= state <= 3 * 4 * numbers + 50_000
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    assert merged.state_dict().keys() == base.state_dict().keys()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        first = base(ids).logits
        adapted = PeftModel.from_pretrained(base, folder / "adapter")(ids).logits
        torch.testing.assert_close(merged(ids).logits, adapted, atol=1e-4, rtol=1e-4)
    assert (adapted - first).abs().max() > 0.1


class Recorder:
    """A transport that keeps what it is given."""

    def __init__(self, coordinator, config, generation=0):
        self.given = {}

    def publish(self, version, weights, sender):
        self.given = {name: tensor.clone() for name, tensor in weights}


def publish(rank, world, path, zero):
    """(what was published, its fingerprint, what training changes) of an engine with an adapter."""
    from srft_ray.train import publisher
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine

    model = load_model(ModelSection(str(path)), torch.float32, activation_checkpointing=False)
    adapter = low_rank.with_adapter(model, case(zero).learner().lora)
    engine = DeepSpeedEngine(model, case(zero).learner(), torch.float32, adapter)
    section = ModelSection(str(path), max_length=64)
    job = SimpleNamespace(model=section, rollout=RolloutSection(), uses_engines=True, coordinator=None)
    with patch.object(publisher, "transport_class", lambda name: Recorder):
        sent = publisher.Publisher(job, LearnerStart(0, 1, from_model=False), engine, 1e-3)
    sent.publish(3)
    return sent.transport.given, sent.provenance.fingerprints[3], sum(1 for _ in engine.weights())


@pytest.mark.parametrize(("world", "zero"), [(1, 0), (2, 3)])
def test_adapters_alone_are_published(tiny_model, world, zero):
    given, published, whole = spawn(world, publish, tiny_model, zero)
    numbers = count_adapter_parameters(
        ModelSection(str(tiny_model), max_length=128), case(zero).learner().lora
    )
    assert sum(tensor.nbytes for tensor in given.values()) == 4 * numbers
    assert all(name.startswith("base_model.model.") and ".lora_" in name for name in given)
    assert published == fingerprint(given.items())
    assert whole == len(AutoModelForCausalLM.from_pretrained(tiny_model).state_dict())
