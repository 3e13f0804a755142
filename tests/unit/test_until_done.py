"""How often learners may fail: failures count until the run has come forward."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from srft_ray.errors import RunFailed
from srft_ray.run import until_done as module
from srft_ray.run.placement import Placement
from srft_ray.run.series import Run
from srft_ray.run.until_done import LearnersFailed, train_until_done

STEPS = 10


class Store:
    """Checkpoints as the newest step of each call of Ray Train."""

    step = 0

    def latest(self) -> int:
        return self.step

    def finished(self, trainer: SimpleNamespace) -> bool:
        return self.step == trainer.steps


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Trains with calls that each reach a step and end well or not; gives who stopped the run."""

    def run(calls: Sequence[tuple[int, bool]], stopped: str = "") -> str:
        store = Store()
        left = iter(calls)

        def call(*_: Any) -> None:
            store.step, failed = next(left)
            if failed:
                raise LearnersFailed(f"failed after {store.step} saved steps")

        monkeypatch.setattr(module, "_train", call)
        monkeypatch.setattr(module.ray, "get", lambda _: (stopped, ""))
        trainer = SimpleNamespace(max_failures=1, steps=STEPS)
        resolved = SimpleNamespace(config=SimpleNamespace(trainer=trainer), run_dir=tmp_path)
        ended = SimpleNamespace(ended=SimpleNamespace(remote=lambda: None))
        plan = SimpleNamespace(evaluates=lambda step: False)
        prepared = SimpleNamespace(store=store, resolved=resolved, plan=plan, evaluation={})
        return train_until_done([Run(prepared, "id")], ended, Placement("cpu"))

    return run


def test_failures_of_weeks_do_not_add_up(train: Callable[..., str], tmp_path: Path):
    assert train([(3, True), (5, True), (8, True), (STEPS, False)]) == ""
    assert (tmp_path / "events.jsonl").read_text().count("restarting after 2 failures") == 3


def test_failures_without_a_step_end_the_run(train: Callable[..., str]):
    with pytest.raises(RunFailed, match="failed after 3 saved steps"):
        train([(3, True), (3, True), (STEPS, False)])


def test_a_failure_is_no_clean_stop(train: Callable[..., str]):
    with pytest.raises(RunFailed, match="failed after 3 saved steps"):
        train([(3, True), (STEPS, False)], stopped="SIGTERM")


def test_learners_that_leave_again_and_again_end_the_run(train: Callable[..., str]):
    with pytest.raises(RunFailed, match="left 2 times without a step"):
        train([(0, False), (0, False), (STEPS, False)])
