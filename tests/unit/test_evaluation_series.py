"""Which models are evaluated by the same engines, and that other weights than the published ones are
refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from algorithms import GRPO, Completion, Group
from srft_ray.commands import evaluation_series
from srft_ray.commands.evaluation_sampling import ModelEvaluation, write_parts
from srft_ray.commands.evaluation_series import series_of_models
from srft_ray.commands.model_weights import published_tensors
from srft_ray.config.load import make_config
from srft_ray.config.resolve import resolve
from srft_ray.data.blocks import as_block
from srft_ray.data.plan import StepSize, StreamPlan
from srft_ray.data.tokenize import load_tokenizer
from srft_ray.models import load_model
from srft_ray.observe import evaluation_ledger
from tests.conftest import base_config

PLAN = StreamPlan(0, (StepSize(0, 4),), 2, 1, {"held": 8}, 1)
WEIGHTS = "model.safetensors"


@pytest.fixture
def evaluation(tmp_path: Path) -> Callable[..., ModelEvaluation]:
    """Of a model, with other keys of the config."""

    def make(path: Path, **sections: dict[str, Any]) -> ModelEvaluation:
        values = base_config(tmp_path, path, evaluation={"data": {"held": {}}}, **sections)
        resolved = resolve(make_config(values), GRPO())
        return ModelEvaluation(resolved, load_tokenizer(resolved.config.model), {}, PLAN, path)

    return make


@pytest.fixture
def other(tmp_path: Path, tiny_model: Path) -> Path:
    """The same model with other weights."""
    folder = shutil.copytree(tiny_model, tmp_path / "other")
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / WEIGHTS)
    return folder


def edit(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | changes))


def are_shared(models: list[ModelEvaluation]) -> bool:
    return len(series_of_models(models)) == 1


def test_models_that_differ_in_their_weights_share(evaluation, other, tiny_model, untied_model):
    models = [evaluation(model) for model in (tiny_model, untied_model, other)]
    assert series_of_models(models) == [[models[0], models[2]], [models[1]]]


def test_who_saved_a_model_and_in_which_format_does_not_count(evaluation, other, tiny_model):
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(other / WEIGHTS).items()}
    names = sorted(tensors)
    index = {}
    for number, part in enumerate([names[::2], names[1::2]]):
        file = f"model-{number}.safetensors"
        save_file({name: tensors[name] for name in part}, other / file)
        index |= dict.fromkeys(part, file)
    (other / WEIGHTS).unlink()
    edit(other / "model.safetensors.index.json", weight_map=index)
    edit(other / "config.json", transformers_version="4.0.0", dtype="bfloat16")
    edit(other / "generation_config.json", transformers_version="4.0.0")
    (other / "README.md").write_text("of a hub")
    assert are_shared([evaluation(tiny_model), evaluation(other)])


def longer_context(folder: Path) -> None:
    edit(folder / "config.json", max_position_embeddings=1024)


def other_rotation(folder: Path) -> None:
    edit(folder / "config.json", rope_parameters={"rope_theta": 5.0, "rope_type": "default"})


def other_end(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[1, 7])


def other_token(folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["vocab"]["a"], values["model"]["vocab"]["b"] = 4, 3
    (folder / "tokenizer.json").write_text(json.dumps(values))


def other_end_of_the_tokenizer(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token="<pad>")


def quantized(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "fp8"})


def one_tensor_more(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS) | {"model.more": torch.ones(3)}, folder / WEIGHTS)


def one_tensor_less(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.norm.weight"]
    save_file(tensors, folder / WEIGHTS)


def head_of_its_own(folder: Path) -> None:
    """Beside one that is tied."""
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, folder / WEIGHTS)


def one_tensor_of_integers(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name].to(torch.int8)}, folder / WEIGHTS)


def files_beside_those_of_the_model(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "adapter.safetensors")


def names_of_mistral(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "consolidated.safetensors")


CHANGES = (
    longer_context,
    other_rotation,
    other_end,
    other_token,
    other_end_of_the_tokenizer,
    quantized,
    one_tensor_more,
    one_tensor_less,
    head_of_its_own,
    one_tensor_of_integers,
    files_beside_those_of_the_model,
    names_of_mistral,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_another_engine_is_not_shared(evaluation, other, tiny_model, change: Callable[[Path], None]):
    change(other)
    assert not are_shared([evaluation(tiny_model), evaluation(other)])


def encoder_and_decoder(folder: Path) -> None:
    edit(folder / "config.json", model_type="t5", architectures=["T5ForConditionalGeneration"])


ALONE = (quantized, names_of_mistral, one_tensor_more, one_tensor_less, encoder_and_decoder)


@pytest.mark.parametrize("change", ALONE, ids=lambda change: change.__name__)
def test_what_cannot_be_published_is_alone_beside_its_like(evaluation, other, tmp_path, change):
    change(other)
    same = shutil.copytree(other, tmp_path / "same")
    assert not are_shared([evaluation(other), evaluation(same)])


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"trust_remote_code": True}},
        {"rollout": {"engine": {"block_size": 16}}},
        {"trainer": {"patience": 2, "keep_best": "held", "checkpoint_every": 2, "evaluate_every": 2}},
    ],
)
def test_what_is_not_known_here_is_not_shared(evaluation, other, tiny_model, sections):
    assert not are_shared([evaluation(model, **sections) for model in (tiny_model, other)])


def test_other_settings_are_not_shared(evaluation, other, tiny_model):
    assert not are_shared([evaluation(tiny_model), evaluation(other, rollout={"temperature": 0.5})])


def test_a_model_of_a_hub_is_alone(evaluation, tiny_model):
    local = evaluation(tiny_model)
    config = local.resolved.config
    model = replace(config.model, path="organization/model")
    hub = replace(local, resolved=replace(local.resolved, config=replace(config, model=model)))
    assert not are_shared([local, hub])


def test_without_room_for_copies_nothing_is_shared(evaluation, other, tiny_model, monkeypatch):
    models = [evaluation(tiny_model), evaluation(other)]
    size = (tiny_model / WEIGHTS).stat().st_size
    free = shutil.disk_usage("/")._replace(free=3 * size)
    monkeypatch.setattr(evaluation_series.shutil, "disk_usage", lambda folder: free)
    assert are_shared(models)
    free = free._replace(free=3 * size - 1)
    assert not are_shared(models)


def test_a_stream_has_no_more_blocks_than_that_of_a_run(evaluation, other, tiny_model):
    short = replace(PLAN, stream_blocks=7)
    models = [replace(evaluation(model), plan=short) for model in (tiny_model, other, tiny_model)]
    assert [model.blocks for model in models] == [4, 4, 4]
    assert [len(part) for part in series_of_models(models)] == [1, 1, 1]
    models[0] = replace(models[0], first=2)
    assert [len(part) for part in series_of_models(models)] == [2, 1]


def test_tied_tensors_are_published_under_each_name(evaluation, tiny_model, untied_model):
    for path in (tiny_model, untied_model):
        section = evaluation(path).resolved.config.model
        state = load_model(section, torch.float32, False).state_dict()
        published = list(published_tensors(section))
        assert sorted(name for name, _ in published) == sorted(state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in published)


def test_a_head_that_stands_in_the_files_is_published_from_there(evaluation, other):
    head_of_its_own(other)
    names = [name for name, _ in published_tensors(evaluation(other).resolved.config.model)]
    assert names.count("lm_head.weight") == names.count("model.embed_tokens.weight") == 1


def test_responses_of_other_weights_are_refused(tmp_path):
    def block(number: int, **fingerprints: str) -> dict[str, Any]:
        completions = [Completion(0, "rollout", "text", [5], [-0.5], reward=1.0, verdict="match")]
        group = Group(0, number, "p", [1], "4", {}, completions, "held")
        group.fingerprints = {int(version[1:]): name for version, name in fingerprints.items()}
        return as_block([group])

    write_parts(tmp_path, ["held"], [block(0, v0="ab")], "ab")
    write_parts(tmp_path, ["held"], [block(1, v0="cd")])
    for wrong in (block(2, v0="cd"), block(2, v1="ab"), block(2)):
        with pytest.raises(RuntimeError, match="other weights"):
            write_parts(tmp_path, ["held"], [wrong], "ab")
    assert evaluation_ledger.finished_groups(tmp_path, "held", 0) == {0, 1}
