"""Groups that wait for an update of their own: which, in which order, and that a restart changes nothing."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from pyarrow import fs

from algorithms import GRPO, SFT, Completion, Group, ReLIFTBuffered, TwoStage
from srft_ray.config.load import make_config
from srft_ray.config.resolve import resolve
from srft_ray.errors import UserError
from srft_ray.train import buffer as module
from srft_ray.train.buffer import FILE, GroupBuffer
from srft_ray.train.checkpoint import CheckpointStore
from tests.conftest import base_config


def group(group_id, rewards=(0.0, 0.0), demonstrations=1):
    completions = [Completion(n, "rollout", "", [1], reward=reward) for n, reward in enumerate(rewards)]
    first = len(rewards)
    completions += [Completion(first + n, "demo", "d", [5, 6, 7]) for n in range(demonstrations)]
    algorithm = ReLIFTBuffered()
    made = Group(3, group_id, "p", [1, 2], "r", completions=completions, row=group_id + 10, max_new_tokens=8)
    for completion in completions:
        completion.trained = algorithm.trains_on(made, completion)
    return made


@pytest.fixture
def ranks(monkeypatch):
    """Stands for torch.distributed with two ranks; `others` are the groups that the other one buffers."""
    state = SimpleNamespace(rank=0, others=[])

    def gather(shares, own):
        shares[:] = [state.others, own]

    fake = SimpleNamespace(get_rank=lambda: state.rank, get_world_size=lambda: 2, all_gather_object=gather)
    monkeypatch.setattr(module, "dist", fake)
    return state


def test_relift_buffers_prompts_that_all_rollouts_fail():
    algorithm = ReLIFTBuffered()
    assert algorithm.buffers(group(0)) and algorithm.buffers(group(0, (0.5, 0.2)))
    assert not algorithm.buffers(group(0, (0.0, 1.0)))
    assert not algorithm.buffers(group(0, demonstrations=0))
    assert not algorithm.buffers(group(0, rewards=()))
    assert [completion.origin for completion in group(0).trained] == ["rollout"] * 2
    names = {name: term.needs for name, term in algorithm.buffered().named_terms().items()}
    assert names == {"sft_demo": (), "entropy": ("entropy_gradient",)}


def test_the_oldest_groups_make_an_update_and_the_others_wait(ranks):
    algorithm = ReLIFTBuffered(buffer_size=3)
    buffer = GroupBuffer()
    ranks.others = [group(1)]
    assert not buffer.collect(algorithm, [group(2), group(0, (1.0, 0.0))], 3)
    assert buffer.metrics(algorithm) == {"buffer/groups": 2.0} and buffer.used == []
    ranks.others = [group(9)]
    assert buffer.collect(algorithm, [group(8)], 4)
    # Those of group 1, 2 and 8 are taken; rank 0 trains on the first and the third.
    assert [(one.group_id, one.step, one.row) for one in buffer.used] == [(1, 4, 11), (8, 4, 18)]
    assert [one.group_id for one in buffer.waiting] == [9]
    made = {"loss": 0.5, "grad_norm": 2.0, "tokens": 9.0, "entropy/demo": 1.0}
    assert buffer.metrics(algorithm, made) == {
        "buffer/groups": 1.0,
        "buffer/loss": 0.5,
        "buffer/grad_norm": 2.0,
        "buffer/tokens": 9.0,
    }
    assert [(c.origin, c.sample, c.ids, c.trained) for c in buffer.used[1].completions] == [
        ("demo", 2, [5, 6, 7], True)
    ]


def test_without_a_buffer_nothing_is_kept(ranks):
    buffer = GroupBuffer()
    assert not buffer.collect(GRPO(), [group(0)], 3)
    assert buffer.waiting == [] and buffer.metrics(GRPO()) == {} and buffer.content() == {}


def test_a_checkpoint_holds_what_waits(ranks, tmp_path):
    algorithm, buffer = ReLIFTBuffered(), GroupBuffer()
    buffer.collect(algorithm, [group(4, demonstrations=2), group(5)], 3)
    store = CheckpointStore(fs.LocalFileSystem(), str(tmp_path), tmp_path)
    files = {name: store.write(7, name, content) for name, content in buffer.content().items()}
    store.commit(7, {"files": files})
    (tmp_path / "step-8").mkdir()
    store.commit(8, {"files": {}})
    loaded = GroupBuffer()
    loaded.load(store, 7)
    assert loaded.waiting == buffer.waiting and len(json.loads(buffer.content()[FILE])) == 2
    loaded.load(store, 8)
    assert loaded.waiting == []
    ranks.rank = 1
    assert buffer.content() == {}, "rank 0 writes"


def adam(parameter):
    return torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.01)


def test_two_kinds_of_updates_have_moments_of_their_own():
    """As two optimizers of the same parameter; the second begins late."""
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine

    gradients = [torch.tensor([g, 1.0]) for g in (1.0, -2.0, 0.5, 3.0, -0.1, 0.7)]
    is_second = [False, False, True, False, True, True]
    expected, found = (torch.nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    two = {False: adam(expected), True: adam(expected)}
    engine = object.__new__(DeepSpeedEngine)
    engine.optimizer, engine.updates, engine._second, engine._second_updates = adam(found), 0, None, 0
    for gradient, second in zip(gradients, is_second, strict=True):
        expected.grad, found.grad = gradient.clone(), gradient.clone()
        two[second].step()
        with engine.second_optimizer() if second else nullcontext():
            engine.optimizer.step()
            engine.updates += 1
        assert torch.equal(found, expected)
    assert (engine.updates, engine._second_updates) == (3, 3)
    steps = [state["step"].item() for state in engine._optimizer_states()]
    assert steps == [3.0]


def test_a_stage_has_no_buffer():
    with pytest.raises(ValueError, match="a stage cannot have a buffer"):
        TwoStage(second=ReLIFTBuffered())


def test_what_is_buffered_is_trained_on_with_simple_terms(tmp_path, tiny_model):
    class NeedsReference(ReLIFTBuffered):
        def buffered(self):
            return GRPO(kl_coefficient=0.1)

    assert SFT().buffer_size == 0
    with pytest.raises(UserError, match="need more than the gradient of entropies"):
        resolve(make_config(base_config(tmp_path, tiny_model)), NeedsReference())
