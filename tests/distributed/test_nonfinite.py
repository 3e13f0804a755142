"""An update with a number that is infinite or not a number is never applied, at any ZeRO stage."""

import math

import pytest
import torch

from algorithms import DrGRPO
from srft_ray.config.load import make_config
from srft_ray.run.preflight import open_store
from srft_ray.train.checkpoint import CheckpointFailed
from srft_ray.train.nonfinite import NonFiniteError
from tests.distributed.harness import Case, load, make_groups, spawn


def infinite_advantage(rollout):
    rollout.advantage = 1e300  # finite in Python, infinite in float32


def reward_not_a_number(rollout):
    rollout.reward = math.nan


def engine_without_a_number(rollout):
    rollout.logprobs = [math.nan] * len(rollout.ids)


def gradient_too_large(rollout):
    rollout.advantage = 1e32  # finite, but the square of its gradient is not


CAUSES = {
    "advantage inf": infinite_advantage,
    "reward nan": reward_not_a_number,
    "engine's log-prob nan": engine_without_a_number,
    "only the norm of the gradient": gradient_too_large,
}


def groups_of(stage, step, world, rank, poison=None):
    """Steps: a good one, one with each poison, a good one: (messages, what had changed, the final state)."""
    groups = make_groups(stage, step)
    for group in groups:
        for rollout in group.rollouts:
            rollout.policy_version = step
    if poison:
        poison(groups[1].rollouts[1])
    return groups[rank::world]


def everything(engine):
    state = {name: value.detach().clone() for name, value in engine.state()}
    weights = {name: value.detach().clone() for name, value in engine.weights()}
    return state | weights


def train(rank, world, model_path, case, poisons):
    """A good step, one with each poison, a good step: (the messages, what had changed, the final state)."""
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine
    from srft_ray.train.learner import Learner

    model, _ = load(model_path)
    engine = DeepSpeedEngine(model, case.learner(), torch.float32)
    learner = Learner(engine, case.learner(), parity_threshold=1e9)
    stage = case.stage(0)
    learner.step(groups_of(stage, 0, world, rank), 0, stage, 1.0)
    messages, changed = [], []
    for poison in poisons:
        before, updates = everything(engine), engine.updates
        with pytest.raises(NonFiniteError) as stopped:
            learner.step(groups_of(stage, 1, world, rank, poison), 1, stage, 1.0)
        messages.append(str(stopped.value))
        after = everything(engine)
        changed += [name for name in before if not torch.equal(before[name], after[name])]
        changed += ["updates"] * (engine.updates != updates)
    learner.step(groups_of(stage, 2, world, rank), 2, stage, 1.0)
    return messages, changed, everything(engine)


SETTINGS = {
    "ZeRO 0": Case(DrGRPO(), zero_stage=0, micro_batch_tokens=40, steps=3, lr=0.003),
    "ZeRO 1 with offload": Case(
        DrGRPO(), zero_stage=1, micro_batch_tokens=40, steps=3, lr=0.003, offload=True
    ),
    "ZeRO 2": Case(DrGRPO(), zero_stage=2, micro_batch_tokens=40, steps=3, lr=0.003),
    "ZeRO 3": Case(DrGRPO(), zero_stage=3, micro_batch_tokens=40, steps=3, lr=0.003),
    "two updates": Case(DrGRPO(), zero_stage=2, micro_batch_tokens=40, steps=3, lr=0.003, mini_batches=2),
}


def chosen(case):
    """Without the last cause where it does not apply.

    With two updates the first one stays when only the gradient of the second is too large. With ZeRO 3
    DeepSpeed's norm does not overflow here: the gradient is clipped, and the update is finite.
    """
    return list(CAUSES)[: 4 if case.mini_batches == 1 and case.zero_stage < 3 else 3]


def train_all(rank, world, model_path):
    """Of each setting what `train` returns with its poisons, and what it returns without any."""
    outcomes = {}
    for name, case in SETTINGS.items():
        poisons = [CAUSES[cause] for cause in chosen(case)]
        poisoned = train(rank, world, model_path, case, poisons)
        outcomes[name] = poisoned, train(rank, world, model_path, case, [])
    return outcomes


@pytest.fixture(scope="module")
def outcomes(tiny_model):
    return spawn(2, train_all, tiny_model)


@pytest.mark.parametrize("name", SETTINGS)
def test_it_is_named_not_applied_and_training_goes_on(outcomes, name):
    (messages, changed, after), (_, _, without) = outcomes[name]
    for cause, message in zip(chosen(SETTINGS[name]), messages, strict=True):
        assert message.startswith("Step 1: the update is not finite and was not applied") and cause in message
        assert "group 1, sample 1" in message and "engines hold other weights" not in message
    assert not changed
    assert all(torch.equal(after[key], without[key]) for key in without)


def save_poisoned(rank, world, model_path, folder):
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine
    from srft_ray.train.saving import Saver
    from tests.conftest import make_tokenizer

    config = make_config(
        {"model": {"path": "x"}, "data": {"path": "x"}, "run": {"dir": str(folder), "name": "run"}}
    )
    config.run_dir.mkdir(exist_ok=True)
    model, _ = load(model_path)
    engine = DeepSpeedEngine(model, Case(DrGRPO()).learner(), torch.float32)
    engine._create_optimizer_state()
    saver = Saver(open_store(config), config.trainer, engine, model, make_tokenizer())
    assert saver.save(1, final=False, about={})
    with torch.no_grad():
        next(iter(model.parameters()))[0] = math.nan
    with pytest.raises(CheckpointFailed) as refused:
        saver.save(2, final=False, about={})
    return str(refused.value), saver.store.steps()


def test_a_checkpoint_holds_no_such_number(tmp_path, tiny_model):
    message, steps = spawn(2, save_poisoned, tiny_model, tmp_path)
    assert "|weight holds a number that is infinite or not a number" in message
    assert "The checkpoint of step 1 is the newest" in message
    assert steps == [1] and not (tmp_path / "run/checkpoints/step-2").exists()
