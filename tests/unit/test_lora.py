"""Adapters of low rank: which layers get them, what they are at first, and the files that others load."""

import json
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from srft_ray.commands.plan import describe
from srft_ray.config.load import make_config
from srft_ray.config.schema import ModelSection
from srft_ray.config.training import LoraSection
from srft_ray.errors import UserError
from srft_ray.models import load_model
from srft_ray.rollout.adapter import adapter_folder
from srft_ray.rollout.engine_settings import engine_settings
from srft_ray.train.logprobs import chunked_logprobs
from srft_ray.train.lora import Adapter, count_adapter_parameters
from tests.conftest import base_config

LORA = LoraSection(rank=3, alpha=6.0)
ALL = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def whole(parameter):
    return parameter.detach()


def adapted(path, lora=LORA, seed=0):
    model = load_model(ModelSection(str(path)), torch.float32, activation_checkpointing=False)
    return model, Adapter(model, lora, seed, str(path))


def tensors(adapter):
    return {name: tensor.clone() for name, tensor in adapter.tensors(whole)}


def trained_a_little(path):
    model, adapter = adapted(path)
    with torch.no_grad():
        for _, low_out in adapter.layers.values():
            low_out += 0.1 * torch.randn(low_out.shape, generator=torch.Generator().manual_seed(1))
    return model, adapter


def logits(model):
    with torch.no_grad():
        return model(torch.arange(5, 25)[None]).logits


def test_at_first_the_policy_is_the_base_model_and_only_adapters_are_trained(tiny_model):
    plain = load_model(
        ModelSection(str(tiny_model), max_length=128), torch.float32, activation_checkpointing=False
    )
    model, adapter = adapted(tiny_model)
    assert torch.equal(logits(model), logits(plain)) and not model.training
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert sorted(adapter.config.target_modules) == ALL
    assert len(trained) == 2 * len(adapter.layers) == 2 * 2 * len(ALL)


def test_adapters_are_drawn_by_the_seed_alone(tiny_model):
    torch.manual_seed(5)
    first = tensors(adapted(tiny_model, seed=7)[1])
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    again, other = tensors(adapted(tiny_model, seed=7)[1]), tensors(adapted(tiny_model, seed=8)[1])
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    low_in = [name for name in first if "lora_A" in name]
    assert low_in and not any(torch.equal(other[name], first[name]) for name in low_in)


@pytest.mark.parametrize("model", ["tiny_model", "untied_model"])
def test_peft_and_transformers_find_the_trained_model_in_the_files(model, request, tmp_path):
    from peft import PeftModel

    path = request.getfixturevalue(model)
    policy, adapter = trained_a_little(path)
    for name, content in adapter.files(tensors(adapter).items()).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    names = base.state_dict().keys()
    merged = dict(adapter.merged(policy.state_dict().items(), whole))
    assert merged.keys() == names
    found = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    torch.testing.assert_close(logits(found), logits(policy), atol=1e-5, rtol=1e-5)
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, merged[name], atol=1e-6, rtol=0)


def test_a_merged_weight_is_rounded_once(tiny_model):
    policy, adapter = trained_a_little(tiny_model)
    policy.to(torch.bfloat16)
    name, (low_in, low_out) = next(iter(adapter.layers.items()))
    weight = policy.get_submodule(name).base_layer.weight
    exact = (weight.double() + 2.0 * low_out.double() @ low_in.double()).detach()
    merged = dict(adapter.merged(policy.state_dict().items(), whole))[f"{name}.weight"]
    assert merged.dtype == torch.bfloat16
    assert exact.abs().max() < 1 and (merged.double() - exact).abs().max() <= 1.01 * 2**-9


def test_targets_are_counted_without_the_model(tiny_model):
    lora = LoraSection(rank=3, targets=["q_proj", "down_proj"])
    _, adapter = adapted(tiny_model, lora)
    assert {name.rpartition(".")[2] for name in adapter.layers} == {"q_proj", "down_proj"}
    numbers = sum(tensor.numel() for tensor in tensors(adapter).values())
    assert count_adapter_parameters(ModelSection(str(tiny_model), max_length=128), lora) == numbers


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "q_projection"])
def test_a_head_and_an_unknown_layer_are_refused(target, tmp_path, untied_model):
    values = base_config(tmp_path, untied_model, learner={"lora": {"rank": 4, "targets": [target]}})
    with pytest.raises(UserError, match=rf"learner.lora.targets has '{target}', .*: choose from down_proj"):
        describe(make_config(values))


@pytest.mark.parametrize(
    ("lora", "problem"),
    [
        ({"rank": 0}, r"learner\.lora\.rank must be at least 1, not 0"),
        ({"rank": 1024}, r"learner\.lora\.rank must be at most 512"),
        ({"rank": 4, "alpha": 0}, r"learner\.lora\.alpha must be above 0"),
        ({"alpha": 16}, r"there are none without a rank: set learner\.lora\.rank too"),
        ({"targets": ["q_proj"]}, r"there are none without a rank: set learner\.lora\.rank too"),
        ({"dropout": 0.1}, r"Unknown config key 'learner\.lora\.dropout'"),
    ],
)
def test_wrong_settings_are_refused(lora, problem, tmp_path, tiny_model):
    with pytest.raises(UserError, match=problem):
        make_config(base_config(tmp_path, tiny_model, learner={"lora": lora}))


def test_the_plan_says_what_is_trained(tmp_path, tiny_model):
    full = describe(make_config(base_config(tmp_path, tiny_model)))
    text = describe(make_config(base_config(tmp_path, tiny_model, learner={"lora": {"rank": 16}})))
    lora = LoraSection(rank=16)
    numbers = count_adapter_parameters(ModelSection(str(tiny_model), max_length=128), lora)
    assert f"M parameters and {numbers / 1e6:,.2f} M of adapters, which are trained" in text
    assert "adapters, which" not in full


def test_an_engine_gets_one_file_of_all_pieces(tmp_path, tiny_model):
    _, adapter = trained_a_little(tiny_model)
    named = list(tensors(adapter).items())
    for number in range(3):
        save_file(dict(named[number::3]), tmp_path / f"model-{number:05d}.safetensors")
    with adapter_folder(tmp_path, LORA) as folder:
        found = load_file(f"{folder}/adapter_model.safetensors")
        config = json.loads((tmp_path / folder / "adapter_config.json").read_text())
    assert found.keys() == dict(named).keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in named)
    assert config == {"peft_type": "LORA", "r": 3, "lora_alpha": 6.0, "target_modules": ALL}
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(("rank", "room"), [(1, 8), (8, 8), (9, 16), (257, 320), (512, 512)])
def test_vllm_has_room_for_every_rank(rank, room, tmp_path, tiny_model):
    config = make_config(base_config(tmp_path, tiny_model))
    settings = engine_settings(config.model, config.rollout, "cpu", LoraSection(rank=rank))
    assert settings["max_lora_rank"] == room and settings["enable_lora"]
    assert "enable_lora" not in engine_settings(config.model, config.rollout, "cpu")


def test_a_frozen_head_costs_no_gradient_of_its_weight():
    head = torch.nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden_NH, targets_N = torch.randn(30, 8, requires_grad=True), torch.arange(30)
    chunked, _ = chunked_logprobs(head, hidden_NH, targets_N, 1.0, chunk_mb=0.001)
    with patch("srft_ray.train.logprobs.matrix_product", side_effect=AssertionError):
        chunked.sum().backward()
    found, hidden_NH.grad = hidden_NH.grad, None
    at_once, _ = chunked_logprobs(head, hidden_NH, targets_N, 1.0, chunk_mb=64)
    at_once.sum().backward()
    torch.testing.assert_close(found, hidden_NH.grad)
