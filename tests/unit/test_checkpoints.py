"""Which steps have a checkpoint, and when it is recorded: at once, or when the background has written it."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from srft_ray.config.training import LearnerSection, TrainerSection
from srft_ray.train import checkpoints as module
from srft_ray.train.checkpoints import Checkpoints


class FakeSaver:
    """Writes at once or in the background, where a checkpoint is complete when it is waited for."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.pending: int | None = None
        self.refuses = False

    def save(self, step: int, final: bool, about: dict[str, Any]) -> bool:
        self.done.append(f"save {step}{' final' if final else ''}{' finished' if about['finished'] else ''}")
        return True

    def begin(self, step: int, about: dict[str, Any]) -> None:
        assert self.pending is None, "one at a time"
        self.pending = step
        self.done.append(f"begin {step}")

    def settle(self, wait: bool) -> int | None:
        step, self.pending = (self.pending, None) if wait else (None, self.pending)
        return None if self.refuses else step

    def close(self) -> None:
        self.done.append("close")


def make(monkeypatch: pytest.MonkeyPatch, background: bool) -> tuple[Checkpoints, FakeSaver]:
    saver = FakeSaver()
    monkeypatch.setattr(module, "BackgroundSaver", lambda *_: saver)
    job: Any = SimpleNamespace(
        run_id="run",
        dtype="float32",
        learner=LearnerSection(),
        trainer=TrainerSection(steps=10, checkpoint_every=3, async_checkpoints=background),
        plan=SimpleNamespace(position=lambda step: 4 * step),
        store=SimpleNamespace(address=lambda step: f"step-{step}"),
    )
    recorder: Any = SimpleNamespace(checkpoint=lambda step, path: saver.done.append(f"record {path}"))
    timeline: Any = SimpleNamespace(phase=lambda name, step: nullcontext())
    return Checkpoints(job, saver, recorder, timeline, 0), saver  # type: ignore[arg-type]


def run(checkpoints: Checkpoints, steps: int) -> None:
    for step in range(1, steps + 1):
        checkpoints.settle(wait=False)
        checkpoints.save_if_due(step)


def test_at_once_it_is_recorded_before_the_next_step(monkeypatch: pytest.MonkeyPatch):
    checkpoints, saver = make(monkeypatch, background=False)
    run(checkpoints, 7)
    assert saver.done == ["save 3", "record step-3", "save 6", "record step-6"]
    checkpoints.save(10, final=True, finished=True)
    checkpoints.save(10, final=True, finished=True)
    assert saver.done[4:] == ["save 10 final finished", "record step-10"], "a step has one checkpoint"


def test_in_the_background_it_is_recorded_when_it_is_complete(monkeypatch: pytest.MonkeyPatch):
    checkpoints, saver = make(monkeypatch, background=True)
    run(checkpoints, 5)
    assert saver.done == ["begin 3"] and checkpoints.saved == 0
    checkpoints.save_if_due(6)
    assert saver.done[1:] == ["record step-3", "begin 6"], "the one before is complete first"


def test_learners_that_leave_wait_for_it_and_write_no_other(monkeypatch: pytest.MonkeyPatch):
    checkpoints, saver = make(monkeypatch, background=True)
    checkpoints.save_if_due(3)
    checkpoints.save(3, final=False)
    assert saver.done == ["begin 3", "record step-3"] and checkpoints.saved == 3
    checkpoints.close()
    assert saver.done[-1] == "close"


def test_learners_that_leave_write_one_at_once_if_that_failed(monkeypatch: pytest.MonkeyPatch):
    checkpoints, saver = make(monkeypatch, background=True)
    checkpoints.save_if_due(3)
    saver.refuses = True
    checkpoints.save(3, final=False)
    assert saver.done == ["begin 3", "save 3", "record step-3"]


def test_the_last_checkpoint_is_written_at_once(monkeypatch: pytest.MonkeyPatch):
    checkpoints, saver = make(monkeypatch, background=True)
    checkpoints.save_if_due(9)
    checkpoints.save(10, final=True, finished=True)
    assert saver.done == ["begin 9", "record step-9", "save 10 final finished", "record step-10"]
