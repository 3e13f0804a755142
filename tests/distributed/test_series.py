"""What a run of a series leaves in the memory of the learners' processes."""

import weakref

import pytest
import torch

from srft_ray.config.schema import ModelSection
from srft_ray.config.training import LearnerSection
from tests.distributed.harness import spawn

SETTINGS = [(stage, dtype) for stage in range(4) for dtype in (torch.float32, torch.bfloat16)]


def models_left(rank, world, path):
    """How many models are left after each of three runs of each setting."""
    from srft_ray.train.critic import Critic, CriticEngine, value_layers
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine
    from srft_ray.train.deepspeed_loading import load_for_learner
    from srft_ray.train.reference import ReferenceModel
    from srft_ray.train.series import collect

    sequences = (
        torch.ones((1, 4), dtype=torch.long),
        torch.zeros(2, dtype=torch.long),
        torch.tensor([1, 2]),
        1.0,
    )

    def run(learner, dtype):
        model = load_for_learner(ModelSection(str(path), max_length=64), learner, dtype)
        engine = DeepSpeedEngine(model, learner, dtype)
        layers = value_layers(load_for_learner(ModelSection(str(path), max_length=64), learner, dtype))
        Critic(CriticEngine(layers, learner, dtype), 1e-5, engine)
        frozen = load_for_learner(ModelSection(str(path), max_length=64), learner, dtype)
        engine.reference = ReferenceModel(frozen, learner, dtype, engine.device)
        engine._create_optimizer_state()
        engine.critic._create_optimizer_state()
        engine.reference.forward(*sequences)
        engine.close()
        return weakref.ref(model), weakref.ref(layers), weakref.ref(frozen)

    found = {}
    for stage, dtype in SETTINGS:
        made = []
        for _ in range(3):
            made += run(LearnerSection(zero_stage=stage, activation_checkpointing=True), dtype)
            collect()
        found[stage, dtype] = sum(one() is not None for one in made)
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_nothing_is_left_of_models(tiny_model, world):
    assert spawn(world, models_left, tiny_model) == dict.fromkeys(SETTINGS, 0)
