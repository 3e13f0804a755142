"""Under ZeRO 3 every rank loads its share only, and the model is the one in the files."""

from unittest.mock import patch

import pytest
import torch

from srft_ray.config.schema import ModelSection
from srft_ray.config.training import LearnerSection
from srft_ray.models import load_model
from tests.distributed.harness import spawn


@pytest.fixture(scope="module")
def scaled_model(tmp_path_factory):
    """A Gemma 4, whose layers have a factor that is no parameter: 1 in a new model, 0.5 in the files."""
    from transformers import Gemma4ForCausalLM, Gemma4TextConfig

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "global_head_dim": 16}
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "hidden_size_per_layer_input": 0}
    with torch.random.fork_rng():
        model = Gemma4ForCausalLM(Gemma4TextConfig(**sizes, **heads, **kinds))
    for layer in model.model.layers:
        layer.layer_scalar.fill_(0.5)
    folder = tmp_path_factory.mktemp("scaled")
    model.save_pretrained(folder)
    return folder


def load(rank, world, paths):
    """By path and number format: whether parameters are partitioned, weights and buffers of the engine."""
    from srft_ray.train import deepspeed_loading
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine

    learner, found = LearnerSection(zero_stage=3), {}
    for path in paths:
        for dtype in (torch.float32, torch.bfloat16):
            # The whole model is in the memory of no rank.
            with patch.object(deepspeed_loading, "load_model", None):
                model = deepspeed_loading.load_for_learner(ModelSection(str(path)), learner, dtype)
            partitioned = all(p.ds_tensor.numel() < p.ds_numel for p in model.parameters())
            engine = DeepSpeedEngine(model, learner, dtype)
            weights = {name: value.clone() for name, value in engine.weights()}
            buffers = dict(model.named_buffers())
            found[path, dtype] = partitioned, not model.training, weights, buffers
    return found


def test_a_partitioned_model_is_that_of_the_files(tiny_model, untied_model, scaled_model):
    found = spawn(2, load, (tiny_model, untied_model, scaled_model))
    for (path, dtype), (partitioned, evaluates, weights, buffers) in found.items():
        whole = load_model(ModelSection(str(path)), dtype, activation_checkpointing=False)
        assert partitioned and evaluates
        assert weights.keys() == whole.state_dict().keys()
        assert all(torch.equal(weights[name], value) for name, value in whole.state_dict().items())
        expected = dict(whole.named_buffers())
        assert buffers.keys() == expected.keys()
        assert all(torch.equal(buffers[name], value) for name, value in expected.items())
        assert all(buffers[name].dtype == value.dtype for name, value in expected.items())
    assert found[scaled_model, torch.bfloat16][2]["model.layers.0.layer_scalar"] == 0.5


def renamed(rank, world, path, removed):
    """Loads a model in whose files weights with `removed` in their names have others.

    Returns:
        Whether the whole model was loaded, and its first weight.
    """
    from srft_ray.train import deepspeed_loading

    def others(folder, files):
        return {name: file for name, file in read(folder, files).items() if removed not in name}

    read = deepspeed_loading._open
    with patch.object(deepspeed_loading, "_open", others):
        model = deepspeed_loading.load_for_learner(
            ModelSection(str(path)), LearnerSection(zero_stage=3), torch.float32
        )
    return not any(hasattr(p, "ds_id") for p in model.parameters()), next(model.parameters()).detach()


@pytest.mark.full
@pytest.mark.parametrize(("model", "removed"), [("tiny_model", "embed"), ("scaled_model", "1.layer_scalar")])
def test_a_model_with_other_names_is_loaded_whole(request, model, removed):
    path = request.getfixturevalue(model)
    whole, first = spawn(1, renamed, path, removed)
    expected = load_model(ModelSection(str(path)), torch.float32, activation_checkpointing=False)
    assert whole and torch.equal(first, next(expected.parameters()))
