"""The history of prompts: what a group may know of it, its way to the actors, and what is chosen by it."""

import asyncio
import random
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from algorithms import GRPO, POPE, SFT, SRPO, Completion, Group, PrioritizedGRPO, TwoStage, Visit
from srft_ray.config.load import make_config
from srft_ray.config.resolve import resolve
from srft_ray.config.rollout import RolloutSection
from srft_ray.data import history as data_history
from srft_ray.data.history import VISIT, VISITS_SHOWN, Chooser, PromptHistory, history_of_bytes
from srft_ray.data.plan import StepSize, StreamPlan
from srft_ray.data.reader import GroupReader, GroupSettings
from srft_ray.data.store import Counts, shuffled
from srft_ray.errors import UserError
from srft_ray.observe import ledger
from srft_ray.observe.ledger_reading import files_by_step, read_step
from srft_ray.rollout import history as rollout_history
from srft_ray.rollout.credit import RefillPolicy
from srft_ray.rollout.history import CoordinatorHistory
from srft_ray.sync.admission import Admission
from srft_ray.sync.coordinator import Coordinator
from srft_ray.sync.versions import OutdatedLearners, PolicyWeights
from srft_ray.train import history as train_history
from srft_ray.train.checkpoint import CheckpointStore
from srft_ray.train.history import FILE, HistoryKeeper
from tests.conftest import base_config

ROWS, SIZE, STEPS = 12, 4, 14


def visits(*items):
    """Entries of the first fields of VISIT; the others, of rollouts with a prefix, are 0."""
    return np.array([(*item, *[0] * (len(VISIT) - len(item))) for item in items], VISIT)


def test_a_view_ends_before_its_step_and_shows_the_newest_visits():
    history = PromptHistory(3, lag=1)
    history.extend(3, visits((1, 0, 8, 2), (2, 0, 8, 8), (1, 2, 8, 5)))
    assert history.visits(1, 3) == (Visit(0, 8, 2), Visit(2, 8, 5))
    assert history.visits(1, 2) == history.visits(1, 1) == (Visit(0, 8, 2),)
    assert history.visits(1, 0) == history.visits(0, 3) == ()
    assert Visit(0, 8, 2).pass_rate == 0.25
    with pytest.raises(ValueError, match="reaches to step 3 and is asked for step 3"):
        history.visits(1, 4)


def test_what_comes_twice_counts_once():
    history = PromptHistory(3, lag=1)
    history.extend(2, visits((1, 0, 8, 2), (1, 1, 8, 3)))
    history.extend(3, visits((1, 1, 8, 3), (1, 2, 8, 4)))
    assert [visit.step for visit in history.visits(1, 3)] == [0, 1, 2]


@pytest.mark.parametrize("lag", [1, 3])
def test_every_view_is_that_of_all_visits_though_old_ones_are_removed(monkeypatch, lag):
    monkeypatch.setattr(data_history, "SMALLEST", 8)
    monkeypatch.setattr(data_history, "PIECE", 5)
    rng = random.Random(lag)
    history = PromptHistory(5, lag)
    everything = defaultdict(list)
    for step in range(120):
        new = [(rng.choice([0, 0, 0, 1, 2, 4]), step, 8, rng.randrange(9)) for _ in range(rng.randrange(4))]
        for row, *rest in new:
            everything[row].append(Visit(*rest))
        history.extend(step + 1, visits(*new))
        if step % 20 == 0:
            restored = history_of_bytes(history.to_bytes(), step + 1, 5, lag)
        restored.extend(step + 1, visits(*new))
        for before in range(max(0, step + 2 - lag), step + 2):
            for row in range(5):
                expected = [visit for visit in everything[row] if visit.step < before][-VISITS_SHOWN:]
                assert history.visits(row, before) == restored.visits(row, before) == tuple(expected)
    assert history.to_bytes() == restored.to_bytes()
    assert len(history) < 5 * VISITS_SHOWN * 2 < sum(map(len, everything.values()))


class Keeps(GRPO):
    """Keeps what is not solved, and asks the random generator; so that both enter the choice."""

    name = "keeps"
    uses_history = True

    def keeps(self, visits, step, rng):
        return rng.random() < (0.2 if visits and visits[-1].pass_rate == 1 else 0.9)


class Nothing(Keeps):
    def keeps(self, visits, step, rng):
        return False


def test_the_candidates_of_a_place_are_spread_over_all_prompts():
    solved = visits(*((row, 0, 4, 4) for row in range(ROWS) if row != 7))
    history = PromptHistory(ROWS, lag=1)
    history.extend(1, solved)
    chosen = [Chooser(ROWS, 0).choose(SRPO(), 1, place, history, 1) for place in range(30)]
    assert {choice.row for choice in chosen} == {7}, "the only prompt that is not solved"
    own = [shuffled(place, ROWS, 0)[1] for place in range(30)]
    assert [choice.passed_over == 0 for choice in chosen] == [row == 7 for row in own]
    unseen = [Chooser(ROWS, 0).choose(SRPO(), 1, place, PromptHistory(ROWS, 1), 0) for place in range(30)]
    assert [choice.row for choice in unseen] == own
    none = [Chooser(ROWS, 0).choose(Nothing(), 1, place, history, 1) for place in range(30)]
    assert [(choice.row, choice.passed_over) for choice in none] == [(row, 0) for row in own]


def test_candidates_are_taken_evenly():
    history = PromptHistory(ROWS, lag=1)
    history.extend(1, visits(*((row, 0, 4, 4) for row in range(6))))
    chosen = [Chooser(ROWS, 0).choose(SRPO(), 1, place, history, 1).row for place in range(1200)]
    counts = np.bincount(chosen, minlength=ROWS)
    assert not counts[:6].any() and counts[6:].min() > 150


def test_srpo_passes_over_what_was_solved_at_its_last_visit():
    rng = random.Random(0)
    algorithm = SRPO()
    assert algorithm.keeps((), 9, rng)
    assert algorithm.keeps((Visit(1, 8, 8), Visit(5, 8, 7)), 9, rng)
    assert algorithm.keeps((Visit(5, 8, 0),), 9, rng)
    assert not algorithm.keeps((Visit(1, 8, 0), Visit(5, 8, 8)), 9, rng)
    again = SRPO(revisit_after=4)
    assert again.keeps((Visit(5, 8, 8),), 9, rng) and not again.keeps((Visit(5, 8, 8),), 8, rng)


def test_prompts_are_kept_in_proportion_to_how_often_they_fail():
    algorithm = PrioritizedGRPO(least_probability=0.1)
    rng = random.Random(0)

    def share(*visits):
        return sum(algorithm.keeps(visits, 9, rng) for _ in range(4000)) / 4000

    assert share() == share(Visit(1, 8, 0)) == 1.0
    # Of 16 rollouts 12 were correct: 1 - 12/16.
    assert share(Visit(1, 8, 8), Visit(4, 8, 4)) == pytest.approx(0.25, abs=0.025)
    assert share(Visit(1, 8, 8)) == pytest.approx(0.1, abs=0.02)


def test_pope_gives_a_part_of_the_demonstration_only_where_all_failed():
    demonstration = Completion(4, "demo", "", list(range(100)))
    group = Group(9, 0, "p", [1], "1", completions=[demonstration], num_rollouts=4, max_new_tokens=200)
    algorithm = POPE(shortest=0.5, longest=0.5)

    def prefixes(*visits):
        given = replace(group, visits=visits)
        return [algorithm.prefix(given, sample, 0, random.Random(0)) for sample in range(4)]

    assert prefixes(Visit(1, 4, 0), Visit(3, 4, 0)) == [50, 50, 0, 0]
    assert prefixes() == prefixes(Visit(1, 4, 1), Visit(3, 4, 0)) == [0] * 4


def test_stages_ask_for_the_history_if_one_of_them_does():
    assert TwoStage(second=SRPO()).uses_history and not TwoStage().uses_history


def test_an_algorithm_that_samples_nothing_has_no_history(tmp_path, tiny_model):
    class Filtered(SFT):
        uses_history = True

    with pytest.raises(UserError, match="chooses prompts by the history of their rollouts, and samples none"):
        resolve(make_config(base_config(tmp_path, tiny_model)), Filtered())


# A whole run without Ray: actors choose, learners record, checkpoints are written and taken up.


class Data:
    counts = Counts(kept=ROWS)

    def row(self, index):
        text = f"p{index}"
        return {"prompt": text, "prompt_ids": [1], "reference": "1", "metadata": {}, "demonstrations": []}


class Handle:
    """Calls a coordinator in this process as if it were an actor; it can lose its memory."""

    def __init__(self):
        self.forget()
        self.coordinator.versions.restart(0, now=0.0)

    def __getattr__(self, name):
        def call(*arguments):
            return asyncio.run(getattr(self.coordinator, name)(*arguments))

        return SimpleNamespace(remote=call)

    def forget(self):
        self.coordinator = Coordinator(0)

    @property
    def generation(self):
        return self.coordinator.versions.generation


class Ranks:
    """Stands for torch.distributed; the groups of a second rank are added by the test."""

    def __init__(self):
        self.others = []

    def get_rank(self):
        return 0

    def get_world_size(self):
        return 2

    def all_gather_object(self, shares, own):
        shares[:] = [self.others, own]


@pytest.fixture
def ranks(monkeypatch):
    ranks = Ranks()
    monkeypatch.setattr(train_history, "dist", ranks)
    monkeypatch.setattr(HistoryKeeper, "_send_again", lambda self: None)  # stepped by hand
    for module in (train_history, rollout_history):
        monkeypatch.setattr(module, "ray", SimpleNamespace(get=lambda value: value))
    return ranks


def reader_of(algorithm, staleness):
    plan = StreamPlan(STEPS, (StepSize(0, SIZE),), 1, 0, {}, 1)
    settings = GroupSettings(3, 4, 8, 1, {}, history_lag=staleness + 1)
    return GroupReader(settings, algorithm, plan, 0, Data(), {})


def sampled(group):
    """The group with rollouts whose rewards depend on prompt and step; prompts come to be solved."""
    rng = random.Random(f"{group.prompt}/{group.step}")
    rewards = [float(rng.random() < 0.3 + 0.07 * group.step) for _ in range(4)]
    group.completions = [Completion(n, "rollout", "", [2], reward=r) for n, r in enumerate(rewards)]
    return group


class Run:
    """Trains from a checkpoint on; the actors of `eager` steps choose as early as the staleness allows."""

    def __init__(self, folder, ranks, algorithm, staleness, eager=True, begin=0):
        self.ranks = ranks
        self.staleness = staleness if eager else 0
        self.store = CheckpointStore.of(folder, "run", None)
        self.handle = Handle()
        rollout = RolloutSection(max_staleness=staleness, timeout_s=0.1)
        self.keeper = HistoryKeeper(ROWS, rollout, self.handle, self.handle.generation)
        self.reader = reader_of(algorithm, staleness)
        lag = staleness + 1
        self.reader.history = CoordinatorHistory(self.handle, ROWS, lag, self.handle.generation, 0.1)
        self.folder = folder
        self.begin = begin
        (folder / "groups").mkdir(exist_ok=True)

    def go(self, end):
        self.keeper.begin(self.store, self.begin)
        chosen = {}
        for step in range(self.begin, end):
            for ahead in range(step, min(end, step + self.staleness + 1)):
                if ahead not in chosen:
                    places = range(ahead * SIZE, ahead * SIZE + SIZE)
                    chosen[ahead] = [sampled(self.reader.training_group(ahead, place)) for place in places]
            own, others = chosen[step][::2], chosen[step][1::2]
            self.ranks.others = train_history.visits_of(others)
            self.keeper.add(step, own)
            ledger.write(self.folder, step, 0, own)
            ledger.write(self.folder, step, 1, others)
            for name, content in self.keeper.content().items():
                self.store.write(step + 1, name, content)
        return {step: [(g.row, g.visits, g.passed_over) for g in groups] for step, groups in chosen.items()}


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("algorithm", [SRPO(), Keeps()], ids=lambda algorithm: algorithm.name)
def test_a_run_that_was_killed_chooses_the_same_prompts(tmp_path, monkeypatch, ranks, staleness, algorithm):
    monkeypatch.setattr(rollout_history, "wait_for_admission", lambda *arguments: None)
    whole = Run(tmp_path, ranks, algorithm, staleness)
    expected = whole.go(STEPS)
    assert sum(passed for groups in expected.values() for _, _, passed in groups) > 0
    for killed_after in (1, 5, 11):
        resumed = Run(tmp_path, ranks, algorithm, staleness, begin=killed_after)
        found = resumed.go(STEPS)
        assert found == {step: expected[step] for step in range(killed_after, STEPS)}
        assert resumed.keeper.content() == whole.keeper.content()


def test_what_is_chosen_does_not_depend_on_when(tmp_path, monkeypatch, ranks):
    monkeypatch.setattr(rollout_history, "wait_for_admission", lambda *arguments: None)
    early = Run(tmp_path, ranks, Keeps(), 2).go(STEPS)
    late = Run(tmp_path, ranks, Keeps(), 2, eager=False).go(STEPS)
    assert early == late
    assert all(visit.step < step - 2 for step, groups in early.items() for _, vs, _ in groups for visit in vs)
    assert any(vs for groups in early.values() for _, vs, _ in groups)


def test_the_history_is_a_function_of_the_ledger(tmp_path, monkeypatch, ranks):
    monkeypatch.setattr(rollout_history, "wait_for_admission", lambda *arguments: None)
    run = Run(tmp_path, ranks, SRPO(), 1)
    run.go(STEPS)
    found = []
    for step, files in sorted(files_by_step(tmp_path).items()):
        groups = defaultdict(list)
        for row in read_step(files, step).to_pylist():
            groups[row["group_id"]].append(row)
        for _, rows in sorted(groups.items()):
            correct = sum(row["reward"] > 0.5 for row in rows)
            found.append((rows[0]["row"], step, len(rows), correct))
    from_ledger = PromptHistory(ROWS, 2)
    from_ledger.extend(STEPS, visits(*found))
    assert run.keeper.content() == {FILE: from_ledger.to_bytes()}
    assert pq.read_table(tmp_path / "groups/step-000000-0000.parquet")["row"].to_pylist()[0] >= 0


def test_only_what_entered_the_update_is_a_visit():
    completions = [Completion(n, "rollout", "", [1], reward=1.0, trained=n > 0) for n in range(3)]
    completions.append(Completion(3, "demo", "", [1]))
    completions.append(Completion(4, "rollout", "", [1, 2], reward=1.0, prefix=1))
    assert train_history.visits_of([Group(5, 7, "p", [1], "1", completions=completions, row=2)]) == [
        (7, (2, 5, 2, 2, 1, 1, 1))
    ]
    for completion in completions:
        completion.trained = False
    assert not train_history.visits_of([Group(5, 7, "p", [1], "1", completions=completions, row=2)])


def test_a_coordinator_that_lost_its_memory_gets_the_history_again(tmp_path, ranks, monkeypatch):
    run = Run(tmp_path, ranks, SRPO(), 0)
    monkeypatch.setattr(rollout_history, "wait_for_admission", lambda *arguments: None)
    run.go(3)
    run.handle.forget()
    assert run.handle.coordinator.history.until == 0
    run.keeper._send()
    assert run.handle.coordinator.history.until == 3
    fresh = CoordinatorHistory(run.handle, ROWS, 1, run.handle.generation, 0.1)
    assert fresh(3).between(0, 3).tolist() == run.keeper.history.between(0, 3).tolist()


def test_earlier_learners_cannot_add_to_the_history(tmp_path, ranks):
    run = Run(tmp_path, ranks, SRPO(), 0)
    run.keeper.begin(run.store, 0)
    run.handle.coordinator.versions.restart(0, now=1e6)
    with pytest.raises(OutdatedLearners):
        run.keeper.add(0, [])


def test_steps_that_are_missing_are_not_passed_over():
    coordinator = Coordinator(0)
    coordinator.history.add(0, 2, "first")
    with pytest.raises(RuntimeError, match="the history ends at step 2, and a piece begins at step 3"):
        coordinator.history.add(3, 4, "third")
    coordinator.history.add(0, 4, "again")
    coordinator.history.add(2, 3, "second")
    assert coordinator.history.since(2) == ["second"]
    asyncio.run(coordinator.restart(5))
    assert coordinator.history.until == 0


def test_an_actor_waits_until_the_group_that_asks_is_admitted(tmp_path, ranks, monkeypatch):
    run = Run(tmp_path, ranks, SRPO(), 2)
    run.keeper.begin(run.store, 0)
    asked = []

    def admit(coordinator, generation, step, exact, timeout_s, together):
        asked.append((step, exact))
        run.keeper.add(0, [])
        return Admission(True, PolicyWeights(1), 0, 1)

    monkeypatch.setattr(rollout_history, "wait_for_admission", admit)
    assert run.reader.history(0).until == 0 and not asked
    assert run.reader.history(1).until == 1
    assert asked == [(3, False)], "step 3 sees the history before step 1 at staleness 2"
    monkeypatch.setattr(rollout_history, "wait_for_admission", lambda *arguments: None)
    run.handle.coordinator.versions.restart(0, now=1e6)  # whose history is another one
    run.handle.coordinator.history.restart()
    run.handle.coordinator.history.add(0, 2, visits((1, 0, 4, 4)))
    with pytest.raises(TimeoutError, match="history of prompts before step 2 has not come"):
        run.reader.history(2)


def test_without_a_history_nothing_is_written(ranks):
    keeper = HistoryKeeper(0, RolloutSection(), None, 0)
    keeper.begin(None, 4)
    keeper.add(4, [])
    assert keeper.content() == {}
    assert FILE == "history.npy"


def test_a_damaged_history_is_noticed(tmp_path):
    store = CheckpointStore(fs.LocalFileSystem(), str(tmp_path), tmp_path)
    history = PromptHistory(3, 1)
    history.extend(1, visits((1, 0, 8, 2)))
    entry = store.write(1, FILE, history.to_bytes())
    store.commit(1, {"files": {FILE: entry}})
    store.check(1)
    assert store.newest_whole() == 1
    (tmp_path / "step-1" / FILE).write_bytes(history.to_bytes()[:-1] + b"\xff")
    assert store.newest_whole() == 0


def test_a_refill_stays_at_its_place():
    reader = reader_of(SRPO(), 0)
    history = PromptHistory(ROWS, 1)
    reader.history = lambda before: history
    group = reader.training_group(0, 2)
    refill = RefillPolicy(reader).refill(group)
    assert (refill.step, refill.attempt) == (0, 1) and refill.group_id % 16 == 2
    with pytest.raises(RuntimeError, match="needs the history of prompts, and the stream has none"):
        reader_of(SRPO(), 0).training_group(0, 2)
