"""Copies of a model with a longer context, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from srft_ray.commands.cli import main

THETA, POSITIONS = 40_000.0, 16_384


def words(model: Path, target: Path, theta: float = THETA, positions: int = POSITIONS) -> list[str]:
    return [
        "extend",
        str(model),
        f"--rope-theta={theta}",
        f"--positions={positions}",
        "--output",
        str(target),
    ]


@pytest.fixture
def model(tmp_path: Path, tiny_model: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit(file: Path, **changed: object) -> None:
    """Changes keys of a JSON file; None removes one."""
    values = json.loads(file.read_text()) | changed
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize("older_format", [False, True])
def test_the_copy_has_the_positions_and_the_rotary_base(model, tmp_path, capsys, older_format):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if older_format:  # as the published Qwen2.5 has it
        edit(model / "config.json", rope_parameters=None, rope_theta=10_000.0)
    edit(model / "tokenizer_config.json", model_max_length=4096)
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    assert main(words(model, tmp_path / "long")) == 0
    assert "positions 512 -> 16384, rope theta 10000 -> 40000" in capsys.readouterr().out
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "long")
    frequencies = found.model.rotary_emb.inv_freq
    size = 2 * len(frequencies)
    expected = THETA ** -(torch.arange(0, size, 2) / size)
    torch.testing.assert_close(frequencies, expected, rtol=1e-6, atol=0)
    assert found.config.max_position_embeddings == POSITIONS
    assert AutoTokenizer.from_pretrained(tmp_path / "long").model_max_length == POSITIONS
    weights = (tmp_path / "long/model.safetensors").read_bytes()
    assert weights == before["model.safetensors"]
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before, "the model itself stays"


@pytest.mark.parametrize("text", ['{"model_max_length": 131072}', '{"model_max_length": null}', "{}"])
def test_a_tokenizer_that_takes_enough_is_left_as_it_is(model, tmp_path, text):
    (model / "tokenizer_config.json").write_text(text)
    assert main(words(model, tmp_path / "long")) == 0
    name = "tokenizer_config.json"
    assert (tmp_path / "long" / name).read_bytes() == (model / name).read_bytes()


@pytest.mark.parametrize(
    ("theta", "positions", "sentence"),
    [
        (THETA, 512, "--positions must be above the 512 that"),
        (0.0, POSITIONS, "--rope-theta must be above 0, not 0.0"),
        (float("nan"), POSITIONS, "--rope-theta must be above 0, not nan"),
    ],
)
def test_numbers_that_extend_nothing_are_refused(model, tmp_path, capsys, theta, positions, sentence):
    assert main(words(model, tmp_path / "long", theta, positions)) == 2
    error = capsys.readouterr().err
    assert sentence in error and len(error.splitlines()) == 1 and not (tmp_path / "long").exists()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "scales its rotary embeddings by yarn",
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rotary embeddings by linear",
        ),
        ({"rope_parameters": None}, "has no rope_theta"),
        ({"max_position_embeddings": None}, "has no max_position_embeddings"),
    ],
)
def test_models_of_another_kind_are_refused(model, tmp_path, capsys, changed, sentence):
    edit(model / "config.json", **changed)
    assert main(words(model, tmp_path / "long")) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "long").exists()


def test_a_folder_without_a_model_and_one_that_exists_are_refused(model, tmp_path, capsys):
    assert main(words(tmp_path, tmp_path / "long")) == 2
    assert "is no model directory" in capsys.readouterr().err
    assert main(words(model, model)) == 2
    assert "exists: choose another --output" in capsys.readouterr().err
    (model / "config.json").write_text("{")
    assert main(words(model, tmp_path / "long")) == 2
    assert "is no JSON" in capsys.readouterr().err
