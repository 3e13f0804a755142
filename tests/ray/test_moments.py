"""Processes are killed inside an operation that must not be cut in two. Files make the moments certain.

The run ends as if nothing had happened.
"""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.ray.conftest import Run
from tests.ray.faults import GROUPS, ROOT, STEPS, Watched, check_same, words

pytestmark = pytest.mark.full
HOOK = Path(__file__).with_name("moments")


class Moment:
    """A run in which the call of a function with a number waits or raises."""

    def __init__(self, folder: Path, function: str, number: int, action: str = "wait", *more: str):
        self.folder = folder / "moment"
        self.folder.mkdir()
        environment = {
            "SRFT_MOMENT": f"{function}:{number}:{action}:{self.folder}",
            "PYTHONPATH": f"{HOOK}:{ROOT}",
        }
        self.run = Watched(folder / "run", *words(folder, "run", *more), **environment)

    def wait(self, timeout_s: float = 600) -> int:
        """The process that has reached the moment."""
        reached = self.folder / "reached"
        deadline = time.monotonic() + timeout_s
        while not reached.exists():
            assert self.run.process.poll() is None, self.run.process.communicate()
            assert time.monotonic() < deadline, f"not reached; {self.run.events()}"
            time.sleep(0.02)
        return int(reached.read_text())

    def finish(self) -> Run:
        code, _, error = self.run.finish()
        assert code == 0, (error, self.run.events())
        assert not self.run.left()
        done = Run(self.run.run_dir)
        done.check_exactly_once(STEPS, GROUPS)
        return done


def test_a_learner_dies_while_it_commits_a_checkpoint(tmp_path, undisturbed):
    """The files of the second checkpoint are written, its marker is not."""
    moment = Moment(tmp_path, "srft_ray.train.checkpoint:_flush_to_disk", 12)
    os.kill(moment.wait(), signal.SIGKILL)
    folders = sorted(path.name for path in (moment.run.run_dir / "checkpoints").glob("step-*/complete.json"))
    assert len(folders) == 1
    check_same(moment.finish(), undisturbed, STEPS)


def test_a_learner_dies_while_it_removes_an_old_checkpoint(tmp_path, undisturbed):
    """Its marker is gone, its files are not."""
    discard = "srft_ray.train.checkpoint:CheckpointStore.discard"
    moment = Moment(tmp_path, discard, 3, "wait", "trainer.keep_checkpoints=1")
    pid = moment.wait()
    checkpoints = moment.run.run_dir / "checkpoints"
    assert (checkpoints / "step-8/complete.json").exists()
    (checkpoints / "step-4/complete.json").unlink()
    os.kill(pid, signal.SIGKILL)
    check_same(moment.finish(), undisturbed, STEPS)
    assert [path.name for path in checkpoints.glob("step-*")] == [f"step-{STEPS}"]


def test_a_learner_dies_while_it_removes_records_that_are_repeated(tmp_path, undisturbed):
    moment = Moment(tmp_path, "srft_ray.observe.ledger:truncate", 3)
    moment.run.wait_for_step(6)
    moment.run.kill("learner")
    os.kill(moment.wait(), signal.SIGKILL)
    check_same(moment.finish(), undisturbed, STEPS)


def test_the_driver_dies_while_it_removes_records_that_are_repeated(tmp_path, undisturbed):
    moment = Moment(tmp_path, "srft_ray.observe.ledger:truncate", 3)
    moment.run.wait_for_step(6)
    for _ in range(2):
        moment.run.kill_and_start()
        if not (moment.folder / "reached").exists():
            assert moment.wait() == moment.run.process.pid
    check_same(moment.finish(), undisturbed, STEPS)


def test_an_exception_inside_an_engine_is_a_death_of_the_engine(tmp_path, undisturbed):
    function = "srft_ray.rollout.vllm_engine:Engine.stream"
    moment = Moment(tmp_path, function, 9, "raise", "trainer.max_failures=0")
    check_same(moment.finish(), undisturbed, STEPS)
    died = [event for event in moment.run.events() if "died: MemoryError: CUDA out of memory" in event]
    assert len(died) == 1


def test_one_of_two_learners_dies(tmp_path):
    """Their number is fixed, so that both start again."""
    runs = []
    for name in ("calm", "disturbed"):
        folder = tmp_path / name
        folder.mkdir()
        more = ("learner.num_workers=2", "rollout.num_engines=2")
        runs.append(Watched(folder / "run", *words(folder, "run", *more)))
        if name == "disturbed":
            runs[1].wait_for_step(6)
            learners = runs[1].find("learner")
            assert len(learners) == 2
            os.kill(learners[1], signal.SIGKILL)
        code, _, error = runs[-1].finish()
        assert code == 0 and not runs[-1].left(), error
    calm, disturbed = (Run(run.run_dir) for run in runs)
    disturbed.check_exactly_once(STEPS, GROUPS)
    check_same(disturbed, calm, STEPS)


@pytest.mark.parametrize("after_s", [1.0, 4.0, 8.0, 14.0])
def test_sigterm_during_the_start(tmp_path, undisturbed, after_s):
    run = Watched(tmp_path / "run", *words(tmp_path, "run"))
    time.sleep(after_s)
    started = run.done()
    run.process.send_signal(signal.SIGTERM)
    code, out, error = run.finish(90)
    print(
        f"SIGTERM after {after_s} s: exit code {code}, {started} steps done, {out[-200:]!r}, {error[-200:]!r}"
    )
    assert "Traceback" not in error and len(error.splitlines()) <= 1
    assert not run.left(90)
    run.start()
    code, _, error = run.finish()
    assert code == 0, error
    done = Run(run.run_dir)
    done.check_exactly_once(STEPS, GROUPS)
    check_same(done, undisturbed, STEPS)
