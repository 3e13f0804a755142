"""Checkpoints that are written while training goes on hold their step; a crash leaves the one before."""

import os
import threading
import time

import pytest
import torch

from algorithms import SRFT
from srft_ray.config.training import LearnerSection
from srft_ray.run.preflight import open_store
from srft_ray.train.checkpoint import CheckpointFailed, CheckpointStore
from tests.distributed.harness import Case, load, make_groups, spawn
from tests.distributed.test_checkpoint import STEPS, STOP, config_for, train


def case(zero):
    return Case(SRFT(), zero_stage=zero, micro_batch_tokens=60, steps=STEPS, lr=0.003)


def learners(model_path, folder, zero):
    """(engine, learner, saver, the saver in the background) of one rank."""
    from srft_ray.train.background_saving import BackgroundSaver
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine
    from srft_ray.train.learner import Learner
    from srft_ray.train.saving import Saver
    from tests.conftest import make_tokenizer

    settings = case(zero).learner()
    model, _ = load(model_path)
    engine = DeepSpeedEngine(model, settings, torch.float32)
    config = config_for(folder)
    config.run_dir.mkdir(exist_ok=True)
    saver = Saver(open_store(config), config.trainer, engine, model, make_tokenizer())
    learner = Learner(engine, settings, parity_threshold=1e9)
    return engine, learner, saver, BackgroundSaver(saver, LearnerSection().timeout_s)


def step(rank, world, learner, number, zero):
    stage = case(zero).stage(number)
    return learner.step(make_groups(stage, number)[rank::world], number, stage, 1.0)["loss"]


def slow_writes(write, seconds):
    """The storage takes so long for each file."""

    def wait_and_write(store, *arguments):
        assert threading.current_thread().name.startswith("checkpoint")
        time.sleep(seconds)
        return write(store, *arguments)

    return wait_and_write


def train_in_background(rank, world, model_path, folder, zero):
    """(losses, weights, steps done when the checkpoint of STOP became complete)."""
    engine, learner, saver, background = learners(model_path, folder, zero)
    CheckpointStore.write = slow_writes(CheckpointStore.write, 0.3)
    losses, complete = [], None
    for number in range(STEPS):
        if background.settle(wait=number == STEPS - 1) is not None:
            complete = number
            assert saver.newest == STOP
        losses.append(step(rank, world, learner, number, zero))
        if number + 1 == STOP:
            background.begin(STOP, {"policy_version": STOP})
            assert saver.store.steps() == [], "it is no checkpoint before all of it is written"
    return losses, {name: value.detach().clone() for name, value in engine.weights()}, complete


@pytest.mark.parametrize(("world", "zero"), [(2, 2), (1, 0), pytest.param(2, 3, marks=pytest.mark.full)])
def test_it_holds_the_step_after_which_it_was_begun(tmp_path, tiny_model, world, zero):
    losses, weights, complete = spawn(world, train_in_background, tiny_model, tmp_path, zero)
    assert complete > STOP, "training went on"
    # Loading compares what was saved with the engine's state, bit for bit (see `train`).
    continued, after = spawn(world, train, tiny_model, tmp_path, case(zero), STOP, STEPS, None)
    assert continued == losses[STOP:] and all(torch.equal(after[name], weights[name]) for name in weights)


def train_and_die(rank, world, model_path, folder, file):
    """Dies in the thread that writes the second checkpoint, before or within a file of it."""
    _, learner, saver, background = learners(model_path, folder, 0)
    step(rank, world, learner, 0, 0)
    assert saver.save(1, final=False, about={})
    write = CheckpointStore.write

    def die(store, number, name, *parts):
        if name.startswith(file):
            content = b"".join(parts)
            write(store, number, name, content[: len(content) // 2])
            os.kill(os.getpid(), 9)
        return write(store, number, name, *parts)

    CheckpointStore.write = die
    step(rank, world, learner, 1, 0)
    background.begin(2, {})
    for number in range(2, STEPS):
        background.settle(wait=True)
        step(rank, world, learner, number, 0)


@pytest.mark.parametrize("file", ["state-", "hf/model"])
def test_a_crash_while_it_is_written_leaves_the_one_before(tmp_path, tiny_model, file):
    with pytest.raises(Exception, match="SIGKILL"):
        spawn(1, train_and_die, tiny_model, tmp_path, file)
    store = open_store(config_for(tmp_path))
    assert (tmp_path / "run/checkpoints/step-2").is_dir()
    assert store.steps() == [1] and store.newest_whole() == 1
    store.discard_after(1)
    assert not (tmp_path / "run/checkpoints/step-2").exists()
    losses, _ = spawn(1, train, tiny_model, tmp_path, case(0), 1, 3, None)
    undisturbed, _ = spawn(1, train, tiny_model, tmp_path / "run", case(0), 0, 3, None)
    assert losses == undisturbed[1:]


def save_to_bad_storage(rank, world, model_path, folder, wait):
    """(what came of a refused checkpoint, of one that hangs, and of a good one between them).

    `wait`: whether the ranks wait for the one that hangs, or one of them asks after the deadline.
    """
    _, _, saver, background = learners(model_path, folder, 0)
    saver.engine._create_optimizer_state()
    write = CheckpointStore.write

    def refuse(*_):
        raise OSError("No space left on device")

    CheckpointStore.write = refuse if rank else write
    background.begin(1, {})
    refused = background.settle(wait=True), saver.failures
    CheckpointStore.write = write
    background.begin(2, {})
    good = background.settle(wait=True), saver.failures, saver.store.steps()
    hangs = threading.Event()
    CheckpointStore.write = lambda *_: hangs.wait(60) and {}
    background.timeout_s = 2.0
    background.begin(3, {})
    assert background.settle(wait=False) is None
    if not wait and rank:
        time.sleep(2.0)
    with pytest.raises(CheckpointFailed) as failed:
        background.settle(wait)
    hangs.set()
    background.close()
    return refused, good, str(failed.value), saver.store.steps()


@pytest.mark.parametrize("wait", [True, False])
def test_storage_that_refuses_or_hangs(tmp_path, tiny_model, wait):
    refused, good, failed, steps = spawn(2, save_to_bad_storage, tiny_model, tmp_path, wait)
    assert refused == (None, 1) and good == (2, 0, [2]) and steps == [2]
    assert (
        "The checkpoint of step 3 was not written within 2 s" in failed and "step 2 is the newest" in failed
    )
    assert "No space left on device" in (tmp_path / "run/events.jsonl").read_text()
