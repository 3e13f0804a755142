"""When a learner evaluates: the order of update, evaluation, publication, records and checkpoint.

The learner's own loop runs here, with its stream, votes and phases; engines, weights and files are left out.
"""

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from algorithms import SRFT, Completion, Group
from srft_ray.config.settings import Bounds
from srft_ray.config.training import TrainerSection
from srft_ray.data.blocks import as_block
from srft_ray.data.plan import StreamPlan, make_plan
from srft_ray.data.store import Counts
from srft_ray.errors import UserError
from srft_ray.train.evaluations import Evaluations
from srft_ray.train.intake import Intake
from srft_ray.train.job import Batches
from srft_ray.train.provenance import ProvenanceError
from srft_ray.train.worker import LearnerWorker

STEPS, EVERY = 4, 2
FIGURES = {"demo_loss": 1.0}


def plan_of(beside: bool) -> StreamPlan:
    trainer = TrainerSection(steps=STEPS, groups_per_step=2, evaluate_every=EVERY)
    one = Bounds(1, 1)
    return make_plan(trainer, SRFT(), one, one, None, {"a": 1, "b": 1}, beside)


class Learner:
    """A learner whose parts write down what it does with them.

    Attributes:
        done: what it did, in order.
        asked: why the coordinator asks it to leave.
        late: set when the blocks of the evaluation after 2 steps may come.
        refused: names of the segments whose rollouts are of other weights.
    """

    def __init__(self, plan: StreamPlan, checkpoint_every: int = 1) -> None:
        self.done: list[str] = []
        self.asked = ""
        self.late = threading.Event()
        self.late.set()
        self.refused: list[str] = []
        self.plan = plan
        self.every = checkpoint_every
        self.records: list[dict[str, Any]] = []
        self.worker = self._make()

    def _make(self) -> LearnerWorker:
        coordinator = SimpleNamespace(
            leave_requested=SimpleNamespace(remote=lambda *wait: self.asked),
            engine_metrics=SimpleNamespace(remote=lambda taken, version: {}),
        )
        worker = object.__new__(LearnerWorker)
        worker.job = SimpleNamespace(
            plan=self.plan,
            coordinator=coordinator,
            is_preempted=lambda: False,
            rollout=SimpleNamespace(timeout_s=60.0, max_staleness=1, temperature=1.0),
            trainer=TrainerSection(steps=STEPS),
            algorithm=SRFT(),
            seed=0,
            parameters=1,
        )
        worker.rank, worker.world_size, worker.step = 0, 1, 0
        worker.engine = SimpleNamespace(device=torch.device("cpu"))
        worker.learner = SimpleNamespace(step=self._update, buffer=SimpleNamespace(used=[]))
        worker.skipped_in_a_row = 0
        worker.publisher = SimpleNamespace(check=self._check, publish=self._note("publish"), probes=True)
        worker.replays = SimpleNamespace(attach=lambda *a: None, add=lambda *a: None, metrics=lambda *a: {})
        worker.history = SimpleNamespace(add=lambda *a: None)
        worker.saver = SimpleNamespace(finish=self._note("finish"))
        worker.checkpoints = SimpleNamespace(
            saved=0, settle=lambda wait: None, save=self._save, save_if_due=self._save_if_due
        )
        worker.recorder = SimpleNamespace(
            ledger=lambda *a: None,
            step=self._record,
            evaluation=lambda segment, groups, figures: self.done.append(
                f"record {segment.dataset}{segment.step} {figures == FIGURES}"
            ),
        )
        timeline = SimpleNamespace(step=lambda *a: None)
        worker.timeline = timeline
        worker.intake = Intake(worker.job, Batches(self._blocks()), worker.publisher, worker.engine.device)
        reader = SimpleNamespace(
            plan=self.plan,
            evaluation={name: SimpleNamespace(counts=Counts(demonstrations=1)) for name in "ab"},
            held_out_group=lambda segment, place: (segment.dataset, segment.step, place),
        )
        worker.evaluations = Evaluations(reader, worker.intake, worker.learner, worker.recorder, timeline)
        return worker

    def _blocks(self) -> Iterator[dict[str, Any]]:
        for segment in self.plan.segments(0):
            if segment.dataset != "train" and segment.step == EVERY:
                self.late.wait(30)
            for number in range(segment.padded):
                rollout = Completion(0, "rollout", "x", [1], [-1.0], segment.step)
                yield as_block(
                    [Group(segment.step, number, "p", [1], "r", [rollout], dataset=segment.dataset)]
                )

    def _note(self, name: str):
        return lambda step, *rest: self.done.append(f"{name} {step}")

    def _update(self, groups: list[Group], step: int, *rest: object) -> dict[str, float]:
        self.done.append(f"update {step}")
        return {"tokens": 1.0}

    def _check(self, step: int, groups: list[Group]) -> None:
        name = f"{groups[0].dataset}{step}"
        if name in self.refused:
            raise ProvenanceError(name)
        if groups[0].dataset != "train":
            self.done.append(f"take {name}")

    def _record(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.done.append(f"record {record['step']}")

    def _save(self, step: int, final: bool, finished: bool = False) -> None:
        if step > self.worker.checkpoints.saved:
            self.worker.checkpoints.saved = step
            self.done.append(f"save {step}")

    def _save_if_due(self, step: int) -> None:
        if step % self.every == 0 and step < STEPS:
            self._save(step, final=False)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes learners of one rank; references of Ray are the answers themselves."""
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "ranks"), 1), rank=0, world_size=1)
    monkeypatch.setattr("ray.get", lambda answer: answer)
    monkeypatch.setattr("ray.wait", lambda answers, timeout: (answers, []))
    made = []

    def make_learner(beside: bool, checkpoint_every: int = 1) -> Learner:
        learner = Learner(plan_of(beside), checkpoint_every)

        def score(_, groups: list[Any], step: int) -> dict[str, float]:
            learner.done.append(f"score {groups[0][0]}{step}")
            return FIGURES

        monkeypatch.setattr("srft_ray.train.evaluations.held_out_figures", score)
        made.append(learner)
        return learner

    yield make_learner
    for learner in made:
        learner.late.set()
    dist.destroy_process_group()


def evaluation(*verbs: str, step: int) -> list[str]:
    more = {"record": " True"}
    return [f"{verb} {name}{step}{more.get(verb, '')}" for verb in verbs for name in "ab"]


def test_beside_an_update_responses_are_taken_after_it_and_before_the_publication(make):
    learner = make(beside=True)
    learner.worker.run()
    expected = []
    for step in range(STEPS):
        at = step % EVERY == 0
        expected += evaluation("score", step=step) if at else []
        expected += [f"update {step}"]
        expected += evaluation("take", step=step) if at else []
        expected += [f"publish {step + 1}"]
        expected += evaluation("record", step=step) if at else []
        expected += [f"record {step}"]
        expected += [f"save {step + 1}"] if step + 1 < STEPS else []
    expected += [*evaluation("take", "score", "record", step=STEPS), f"save {STEPS}"]
    assert learner.done == expected


def test_otherwise_all_of_an_evaluation_comes_before_the_update(make):
    learner = make(beside=False)
    learner.worker.run()
    expected = []
    for step in range(STEPS):
        expected += evaluation("take", "score", "record", step=step) if step % EVERY == 0 else []
        expected += [f"update {step}", f"publish {step + 1}", f"record {step}"]
        expected += [f"save {step + 1}"] if step + 1 < STEPS else []
    expected += [*evaluation("take", "score", "record", step=STEPS), f"save {STEPS}"]
    assert learner.done == expected


@pytest.mark.parametrize("beside", [False, True])
def test_what_an_evaluation_took_is_in_its_step_and_in_no_other(make, beside):
    learner = make(beside)
    learner.late.wait = lambda timeout: time.sleep(0.5)  # for each of two sets
    learner.worker.run()
    took = [record["time/evaluation"] for record in learner.records]
    assert took[1] == took[3] == 0 and 0 < took[0] < 1 <= took[2]
    assert all(record["time/step"] < 1 for record in learner.records), "and not in the time of the step"


def test_learners_that_are_to_leave_drop_an_update_that_follows_a_checkpoint(make):
    learner = make(beside=True)
    learner.late.clear()
    learner.worker.learner.step = lambda groups, step, *rest: ask(learner, groups, step)
    learner.worker.run()
    assert learner.done[-2:] == evaluation("score", step=2)
    assert learner.worker.checkpoints.saved == 2 and "publish 3" not in learner.done


def test_learners_that_are_to_leave_finish_an_update_that_follows_none(make):
    learner = make(beside=True, checkpoint_every=9)
    learner.late.clear()
    learner.worker.learner.step = lambda groups, step, *rest: ask(learner, groups, step, come=True)
    learner.worker.run()
    tail = [*evaluation("take", step=2), "publish 3", *evaluation("record", step=2), "record 2", "save 3"]
    assert learner.done[-len(tail) :] == tail


def ask(learner: Learner, groups: list[Group], step: int, come: bool = False) -> dict[str, float]:
    """An update; the learners are asked to leave during the one of step 2. `come`: the evaluation comes."""
    if step == EVERY:
        learner.asked = "SIGTERM"
        if come:
            threading.Timer(0.7, learner.late.set).start()  # after the first look for a request
        return {"tokens": 1.0}
    return learner._update(groups, step)


@pytest.mark.parametrize(("refused", "saved"), [("a2", 0), ("train2", 2)])
def test_there_is_no_checkpoint_of_an_update_whose_evaluation_is_missing(make, refused, saved):
    """What `entry` does after a ParityError: it saves the policy, which is sound, unless it was updated."""
    learner = make(beside=True, checkpoint_every=9)
    learner.refused.append(refused)
    with pytest.raises(ProvenanceError, match=refused):
        learner.worker.run()
    learner.worker.save(final=True)
    assert learner.worker.checkpoints.saved == saved


def test_a_stream_in_another_order_is_refused(make):
    learner = make(beside=True)
    learner.worker.intake.batches = Batches(Learner(plan_of(beside=False))._blocks())
    with pytest.raises((RuntimeError, UserError), match="The stream is out of order"):
        learner.worker.run()
