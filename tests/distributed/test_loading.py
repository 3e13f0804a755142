"""Under ZeRO 3 every rank loads its share only, and the model is the one in the files."""

from unittest.mock import patch

import pytest
import torch

from srft_ray.config.schema import ModelSection
from srft_ray.config.training import LearnerSection
from srft_ray.models import load_model
from tests.distributed.harness import spawn


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


def test_a_partitioned_model_is_that_of_the_files(tiny_model, untied_model):
    found = spawn(2, load, (tiny_model, untied_model))
    for (path, dtype), (partitioned, evaluates, weights, buffers) in found.items():
        whole = load_model(ModelSection(str(path)), dtype, activation_checkpointing=False)
        assert partitioned and evaluates
        assert weights.keys() == whole.state_dict().keys()
        assert all(torch.equal(weights[name], value) for name, value in whole.state_dict().items())
        expected = dict(whole.named_buffers())
        assert buffers.keys() == expected.keys()
        assert all(torch.equal(buffers[name], value) for name, value in expected.items())


def renamed(rank, world, path):
    """Loads a model whose files have other names: (whether the whole model was loaded, its first weight)."""
    from srft_ray.train import deepspeed_loading

    names = {"lm_head.weight": None}
    with patch.object(deepspeed_loading, "_open", lambda folder, files: names):
        model = deepspeed_loading.load_for_learner(
            ModelSection(str(path)), LearnerSection(zero_stage=3), torch.float32
        )
    return not any(hasattr(p, "ds_id") for p in model.parameters()), next(model.parameters()).detach()


@pytest.mark.full
def test_a_model_with_other_names_is_loaded_whole(tiny_model):
    whole, first = spawn(1, renamed, tiny_model)
    expected = load_model(ModelSection(str(tiny_model)), torch.float32, activation_checkpointing=False)
    assert whole and torch.equal(first, next(expected.parameters()))
