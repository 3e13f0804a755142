"""ExGRPO by hand: its loss, which prompts and rollouts return, and whole runs that are killed and resumed."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from pyarrow import fs

from algorithms import Batch, Completion, ExGRPO, Group, PolicyOutput, SFTThenRL, TwoStage, Visit
from srft_ray.data.history import PromptHistory
from srft_ray.data.replay import ReplayChooser
from srft_ray.observe import ledger
from srft_ray.observe.ledger_reading import files_by_step, read_step
from srft_ray.rollout import history as rollout_history
from srft_ray.train import history as train_history
from srft_ray.train import replay
from srft_ray.train.checkpoint import CheckpointStore
from srft_ray.train.replay import FILE, ReplayPool
from tests.unit.test_history import ROWS, SIZE, STEPS, Ranks, Run, ranks, sampled, visits

__all__ = ["ranks"]  # a fixture


def test_the_loss_of_a_replay_and_a_rollout_by_hand():
    logprobs = torch.tensor([[0.3, 0.8], [0.5, 1.0]], dtype=torch.float64).log().requires_grad_()
    batch = Batch(
        mask_BT=torch.tensor([[True, True], [True, False]]),
        is_demo_B=torch.tensor([False, False]),
        rewards_B=torch.tensor([1.0, 0.0]),
        advantages_B=torch.tensor([0.5, -0.5], dtype=torch.float64),
        behavior_logprobs_BT=torch.tensor([[0.5, 0.4], [0.1, 1.0]], dtype=torch.float64).log(),
        is_replay_B=torch.tensor([True, False]),
    )
    losses = ExGRPO(entropy_coefficient=0.0).losses(batch, PolicyOutput(logprobs, torch.zeros(2, 2)))
    # w is 0.6 and 2: f(w) = 0.6/0.7 and 2/2.1. Three tokens; the rollout's ratio to the learner's π_old is 1.
    assert losses["replay"].item() == pytest.approx(-0.5 * (0.6 / 0.7 + 2 / 2.1) / 3)
    assert losses["on_policy"].item() == pytest.approx(0.5 / 3)
    sum(losses.values()).backward()
    # f'(w) w = w γ / (w + γ)²
    expected = [[-0.5 * 0.06 / 0.49 / 3, -0.5 * 0.2 / 4.41 / 3], [0.5 / 3, 0.0]]
    assert logprobs.grad.numpy() == pytest.approx(np.array(expected))


def test_prompts_that_are_solved_half_the_time_return_most():
    algorithm = ExGRPO()
    weights = [algorithm.replay_weight(Visit(0, 8, correct)) for correct in (1, 3, 4, 5, 7, 8)]
    expected = [math.exp(-4.5), math.exp(-0.5), 1.0, math.exp(-0.5), math.exp(-4.5), 0.0]
    assert weights == pytest.approx(expected)
    assert algorithm.replay_weight(Visit(0, 7, 3)) == pytest.approx(math.exp(-0.125))
    assert TwoStage(second=ExGRPO(replay_age=7)).replay_age == 7 and SFTThenRL().replay_age == 0


def chosen(history, algorithm, step=10, places=4000):
    chooser = ReplayChooser(3)
    return [chooser.choose(algorithm, step, place, history, step) for place in range(places)]


def test_outcomes_are_drawn_first_and_then_their_prompts():
    history = PromptHistory(ROWS, lag=1)
    # Rows 0 to 2 have 4 of 8, row 3 has 5 of 8; 4 has none, 5 all, 6 is too old, and 7 failed at last.
    half = [(row, 8, 8, 4) for row in range(3)]
    history.extend(7, visits((6, 6, 8, 4), (7, 6, 8, 4)))
    history.extend(10, visits((7, 7, 8, 0), *half, (3, 9, 8, 5), (4, 9, 8, 0), (5, 9, 8, 8)))
    found = chosen(history, ExGRPO(replay_age=3, start_above=0.3))
    share = sum(choice is not None for choice in found) / len(found)
    assert share == pytest.approx(0.5, abs=0.03)
    rows = Counter(choice.row for choice in found if choice)
    assert set(rows) == {0, 1, 2, 3}
    one_half = 1 / (1 + math.exp(-0.5))
    assert rows[3] / sum(rows.values()) == pytest.approx(1 - one_half, abs=0.03)
    assert rows[0] / sum(rows.values()) == pytest.approx(one_half / 3, abs=0.03)
    first = next(choice for choice in found if choice and choice.row == 0)
    assert first.replays and first.visits == (Visit(8, 8, 4),)
    again = chosen(history, ExGRPO(replay_age=3, start_above=0.3))
    assert [choice and choice.row for choice in found] == [choice and choice.row for choice in again]


def test_nothing_returns_before_the_policy_is_good_enough_or_if_nothing_can():
    history = PromptHistory(ROWS, lag=1)
    history.extend(10, visits((0, 8, 8, 4), (1, 9, 20, 7)))
    assert not any(chosen(history, ExGRPO(), places=50)), "7 of 20 is not above 0.35"
    assert any(chosen(history, ExGRPO(start_above=0.34), places=50))
    solved = PromptHistory(ROWS, lag=1)
    solved.extend(10, visits((0, 9, 8, 8), (1, 9, 8, 0)))
    assert not any(chosen(solved, ExGRPO(), places=50))
    assert not any(chosen(PromptHistory(ROWS, lag=1), ExGRPO(), step=0, places=50))


def rollout(sample, logprobs, reward=1.0, **more):
    return Completion(sample, "rollout", "", [7] * len(logprobs), logprobs, 4, reward=reward, **more)


class ReplayRanks(Ranks):
    ReduceOp = torch.distributed.ReduceOp

    def all_reduce(self, value, operation=None):
        """The second rank has no groups."""


@pytest.fixture
def one_rank(monkeypatch):
    """Stands for torch.distributed; the records of a second rank are added by the test."""
    ranks = ReplayRanks()
    monkeypatch.setattr(replay, "dist", ranks)
    return ranks


def visited(step, *completions, row=2, group_id=0):
    return Group(step, group_id, "p", [1], "1", completions=list(completions), row=row)


def returning(step, *steps, row=2):
    """A group that replays, of a prompt that was visited at these steps."""
    group = visited(step, rollout(0, [-1.0], 0.0), rollout(1, [-1.0], 0.0), row=row)
    group.visits, group.replays = tuple(Visit(one, 8, 4) for one in steps), True
    return group


def test_the_likeliest_correct_rollout_returns(one_rank):
    pool = ReplayPool(age=3)
    likely = rollout(3, [-0.5, -0.2])
    others = [
        rollout(0, [-0.1], reward=0.0),
        rollout(1, [-0.9, -0.1]),
        rollout(2, [-0.1], trained=False),
        rollout(4, [0.0, -0.1], prefix=1),
    ]
    pool.add(5, [visited(5, likely, *others)])
    group = returning(6, 5)
    pool.attach(ExGRPO(replay_age=3), [group])
    found = group.completions[-1]
    assert (found.origin, found.sample, found.policy_version) == ("replay", 2, 4)
    assert found.logprobs == np.float32([-0.5, -0.2]).tolist() and found.ids == [7, 7]
    # One of three rewards is 1: the mean is 1/3.
    assert [one.advantage for one in group.completions] == pytest.approx([-1 / 3, -1 / 3, 2 / 3])
    assert pool.metrics([group], torch.device("cpu"))["replay/staleness_max"] == 2.0


def test_what_an_environment_wrote_returns_as_such(one_rank):
    """Nor does it make a rollout likelier: the mean of the two sampled tokens is -0.4."""
    pool = ReplayPool(age=3)
    likely, answered = rollout(0, [-0.3, -0.3]), rollout(1, [-0.4, 0.0, 0.0, -0.4], observed=[(1, 3)])
    pool.add(4, [visited(4, answered)])
    pool.add(5, [visited(5, likely, answered)])
    pool.attach(ExGRPO(replay_age=3), [both := returning(6, 4, 5), first := returning(6, 4)])
    assert both.completions[-1].logprobs == np.float32([-0.3, -0.3]).tolist()
    assert first.completions[-1].observed == [[1, 3]] and first.completions[-1].written == 2


def test_a_rollout_returns_only_as_long_as_it_is_young_enough(one_rank):
    pool = ReplayPool(age=3)
    for step in (4, 5):
        pool.add(step, [visited(step, rollout(0, [-0.1 * step]))])
    pool.attach(ExGRPO(replay_age=3), [young := returning(7, 4, 5)])
    assert young.completions[-1].logprobs == np.float32([-0.4]).tolist()
    pool.attach(ExGRPO(replay_age=2), [younger := returning(7, 4, 5)])
    assert younger.completions[-1].logprobs == np.float32([-0.5]).tolist()
    pool.add(6, [])
    pool.add(7, [])
    with pytest.raises(RuntimeError, match="Step 8: group 0 replays a rollout of row 2"):
        pool.attach(ExGRPO(replay_age=3), [returning(8, 4)])
    assert len(pool) == 1 and not ReplayPool(0).metrics([], torch.device("cpu"))


def test_what_is_kept_does_not_depend_on_ranks_and_survives_a_checkpoint(one_rank, tmp_path):
    groups = [visited(5, rollout(0, [-0.3], seed=n), row=1, group_id=n) for n in range(3)]
    pools = []
    for own, others in ((groups, []), (groups[1:], groups[:1]), ([], groups[::-1])):
        one_rank.others = replay._found(others)
        pools.append(ReplayPool(3))
        pools[-1].add(5, own)
    contents = [pool.content()[FILE] for pool in pools]
    assert contents[0] == contents[1] == contents[2]
    store = CheckpointStore(fs.LocalFileSystem(), str(tmp_path), tmp_path)
    store.commit(6, {"files": {FILE: store.write(6, FILE, contents[0])}})
    loaded = ReplayPool(3)
    loaded.load(store, 6)
    assert loaded.content()[FILE] == contents[0] and len(loaded) == 1


class ReplayRun(Run):
    """A run whose learners also keep rollouts and train on them again."""

    def __init__(self, folder, ranks, replay_ranks, algorithm, begin=0):
        super().__init__(folder, ranks, algorithm, staleness=1, begin=begin)
        self.algorithm = algorithm
        self.replay_ranks = replay_ranks
        self.pool = ReplayPool(algorithm.replay_age)

    def go(self, end):
        self.keeper.begin(self.store, self.begin)
        if self.begin:
            self.pool.load(self.store, self.begin)
        seen = {}
        for step in range(self.begin, end):
            places = range(step * SIZE, step * SIZE + SIZE)
            groups = [with_tokens(self.reader.training_group(step, place)) for place in places]
            self.pool.attach(self.algorithm, groups)
            own, others = groups[::2], groups[1::2]
            self.replay_ranks.others = replay._found(others)
            self.pool.add(step, own)
            self.ranks.others = train_history.visits_of(others)
            self.keeper.add(step, own)
            for rank, share in enumerate((own, others)):
                ledger.write(self.folder, step, rank, share)
            files = {**self.keeper.content(), **self.pool.content()}
            entries = {name: self.store.write(step + 1, name, content) for name, content in files.items()}
            self.store.commit(step + 1, {"files": entries})
            seen[step] = [(g.row, [(c.origin, c.ids, c.logprobs) for c in g.completions]) for g in groups]
        return seen


def with_tokens(group):
    """Rollouts with ids and log-probs of their own, one less if an earlier one joins them."""
    group = sampled(group)
    group.completions = group.completions[: group.num_rollouts]
    rng = random.Random(f"{group.step}/{group.group_id}")
    for completion in group.completions:
        completion.ids = [rng.randrange(90) for _ in range(3)]
        completion.logprobs = [-rng.random() for _ in range(3)]
        completion.policy_version = max(0, group.step - 1)
    return group


def test_a_run_that_was_killed_replays_the_same_and_the_ledger_tells_all(
    tmp_path, monkeypatch, ranks, one_rank
):
    monkeypatch.setattr(rollout_history, "wait_for_admission", lambda *arguments: None)
    algorithm = ExGRPO(replay_age=4, start_above=0.1)
    expected = ReplayRun(tmp_path, ranks, one_rank, algorithm).go(STEPS)
    for killed_after in (1, 6, 11):
        resumed = ReplayRun(tmp_path, ranks, one_rank, algorithm, begin=killed_after)
        assert resumed.go(STEPS) == {step: expected[step] for step in range(killed_after, STEPS)}
    by_step = sorted(files_by_step(tmp_path).items())
    rows = [row for step, files in by_step for row in read_step(files, step).to_pylist()]
    keys = [(row["step"], row["group_id"], row["sample"]) for row in rows]
    assert len(set(keys)) == len(keys) == STEPS * SIZE * 4
    returned = [row for row in rows if row["origin"] == "replay"]
    assert len(returned) > 5
    for row in returned:
        assert 0 < row["step"] - row["policy_version"] <= algorithm.replay_age + 1
        same = [one for one in rows if one["origin"] == "rollout" and one["logprobs"] == row["logprobs"]]
        assert len(same) == 1 and same[0]["step"] < row["step"] - 1 and same[0]["reward"] == 1.0
        assert (same[0]["row"], same[0]["response_ids"]) == (row["row"], row["response_ids"])
