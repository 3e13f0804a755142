"""Merging of models: the rules by hand, and what is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from srft_ray.commands import cli, model_merge
from srft_ray.commands.model_merge import Weights, mean, merge, select
from srft_ray.errors import UserError


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_mean_by_hand():
    models = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 1.0]])
    assert mean(torch.zeros(3), models, rng()).tolist() == [2.0, 2.0, 0.5]


def test_a_number_that_one_model_changed_is_taken_from_it():
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    models = torch.tensor([[1.0, 5.0, 1.0, 1.0], [2.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 7.0]])
    for seed in range(20):
        assert select(base, models, rng(seed)).tolist() == [2.0, 5.0, 1.0, 7.0]


def test_those_that_changed_it_are_drawn_equally():
    count = 60_000
    models = torch.tensor([[10.0], [11.0], [12.0], [0.0]]).expand(4, count)
    drawn = select(torch.zeros(count), models, rng())
    shares = [(drawn == value).float().mean().item() for value in (10.0, 11.0, 12.0)]
    # Three standard deviations of a share of 1/3.
    assert sum(shares) == pytest.approx(1.0) and all(abs(share - 1 / 3) < 0.006 for share in shares)


@pytest.fixture
def models(tmp_path, tiny_model):
    """A base and two models that differ from it in different numbers."""
    made = [tmp_path / name for name in ("base", "one", "two")]
    for number, folder in enumerate(made):
        shutil.copytree(tiny_model, folder)
        tensors = load_file(folder / "model.safetensors")
        if number:
            tensors = {name: tensor + number for name, tensor in tensors.items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return made


def weights_of(folder):
    found = Weights.of(folder)
    return {name: found.tensor(name) for name in found.files}


def test_a_merged_model_loads_and_is_the_same_again(models, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, *others = models
    done = merge(base, others, tmp_path / "a", "select", 3)
    before, merged = weights_of(base), weights_of(done.folder)
    assert done.share == 1.0 and done.numbers == sum(tensor.numel() for tensor in before.values())
    for name, tensor in merged.items():
        from_one, from_two = tensor == before[name] + 1, tensor == before[name] + 2
        assert (from_one | from_two).all()
        if tensor.numel() > 1000:
            assert 0.4 < from_one.float().mean() < 0.6
    model = AutoModelForCausalLM.from_pretrained(done.folder)
    assert torch.equal(model.model.norm.weight, merged["model.norm.weight"])
    assert AutoTokenizer.from_pretrained(done.folder)("1").input_ids
    record = json.loads((tmp_path / "a/merge.json").read_text())
    assert record["method"] == "select" and record["seed"] == 3 and record["models"] == [*map(str, others)]
    monkeypatch.setattr(model_merge, "PIECE_BYTES", 1000)
    again = weights_of(merge(base, others, tmp_path / "b", "select", 3).folder)
    assert len(list((tmp_path / "b/hf").glob("*.safetensors"))) > 3
    other = weights_of(merge(base, others, tmp_path / "c", "select", 4).folder)
    assert all(torch.equal(again[name], merged[name]) for name in merged)
    assert not all(torch.equal(other[name], merged[name]) for name in merged)


def test_the_command_merges_by_mean(models, tmp_path, capsys):
    words = ["merge", *map(str, models), "--output", str(tmp_path / "out"), "--method", "mean"]
    assert cli.main(words) == 0
    assert "merged 2 models by mean" in capsys.readouterr().out
    before, merged = weights_of(models[0]), weights_of(tmp_path / "out/hf")
    assert all(torch.allclose(merged[name], before[name] + 1.5) for name in before)
    assert cli.main(words) == 2
    assert "out/hf exists: choose another --output" in capsys.readouterr().err


def test_numbers_that_no_model_trains_stay(tmp_path):
    weights = Weights(tmp_path, {})
    positions = torch.arange(3)
    same = replace(weights)
    object.__setattr__(same, "tensor", lambda name: positions)
    assert torch.equal(model_merge._merged("positions", positions, [same, same], select, 0), positions)


def refusal(*arguments):
    with pytest.raises(UserError) as refused:
        merge(*arguments, "select", 0)
    return str(refused.value)


def change(folder, **tensors):
    file = folder / "model.safetensors"
    save_file({**load_file(file), **tensors}, file, {"format": "pt"})


def test_what_does_not_fit_is_refused_in_a_sentence(models, tmp_path):
    base, one, two = models
    out = tmp_path / "out"
    assert "at least two models, not 1" in refusal(base, [one], out)
    assert "nowhere is no model directory: it has no config.json" in refusal(
        base, [one, tmp_path / "nowhere"], out
    )
    change(two, extra=torch.ones(2))
    assert "base does not have the tensor extra of" in refusal(base, [one, two], out)
    change(one, extra=torch.ones(3))
    change(base, extra=torch.ones(2))
    assert "extra is float32 [3] in" in refusal(base, [one, two], out)
    change(one, extra=torch.ones(2, dtype=torch.bfloat16))
    assert "extra is bfloat16 [2] in" in refusal(base, [one, two], out)
    change(one, extra=torch.tensor([1.0, float("nan")]))
    assert "holds a number that is infinite or not a number: leave this model out" in refusal(
        base, [one, two], out
    )
    (two / "model.safetensors").write_bytes(b"nothing")
    assert "cannot be read as safetensors" in refusal(base, [one, two], out)
    (two / "model.safetensors").unlink()
    assert "two has no weights in safetensors format" in refusal(base, [one, two], out)
    assert not (out / "hf").exists() and not (out / "hf.part").exists()
