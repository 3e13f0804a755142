"""Real processes are killed at chosen moments of a step; the run ends as if nothing had happened: every
sequence once, every figure the same."""

import random
import shutil
import signal
import statistics
import time

import pytest

from tests.ray.conftest import Run
from tests.ray.faults import GROUPS, KINDS, STEPS, Watched, check_same, run_with_three_deaths, words

MOMENTS = (
    0.15,
    0.5,
    0.85,
)  # of a step's duration after the one before was recorded: generating, between, learning
# What the median death of a kind may cost, in the time that the same run needed from the command to its first
# step: on the same machine, under the same load.
LIMITS = {"engine": 1.0, "coordinator": 0.5, "verifier": 0.5, "learner": 1.5}


def strike(run, kind, moment, rng):
    """Kills one process of the kind in the coming step; how much longer than ordinary ones the next steps
    took, seconds.

    Of the three, the first may have had its rollouts already.
    """
    ordinary = run.step_s()
    time.sleep(moment * ordinary)
    done, struck = run.done(), time.monotonic()
    run.kill(kind, rng)
    run.wait_for_step(done + 3)
    return time.monotonic() - struck - (3 - moment) * ordinary


def disturb(folder, strikes):
    """A run with (step, kind, moment) strikes; it must end well and leave nothing. Returns it with what each
    strike cost, as a part of the seconds to the first step."""
    began = time.monotonic()
    run, rng, lost = Watched(folder / "run", *words(folder, "run")), random.Random(0), []
    try:
        run.wait_for_step(1)
        start_s = time.monotonic() - began
        for step, kind, moment in strikes:
            run.wait_for_step(step)
            lost.append(strike(run, kind, moment, rng) / start_s)
        code, _, error = run.finish()
        assert code == 0, (error, run.events())
        assert not run.left()
    finally:
        run.process.kill()
    return Run(folder / "run"), lost


def report(kinds, lost):
    print("starts lost:", ", ".join(f"{kind} {part:.2f}" for kind, part in zip(kinds, lost, strict=True)))


def test_one_run_survives_the_death_of_each(tmp_path, undisturbed):
    strikes = [(2, "verifier", 0.15), (5, "coordinator", 0.15), (8, "engine", 0.5), (11, "learner", 0.85)]
    run, lost = disturb(tmp_path, strikes)
    run.check_exactly_once(STEPS, GROUPS)
    check_same(run, undisturbed, STEPS)
    report([kind for _, kind, _ in strikes], lost)


@pytest.mark.full
@pytest.mark.parametrize("kind", list(KINDS))
def test_three_moments(tmp_path, undisturbed, kind):
    run, lost = disturb(tmp_path, [(3 + 4 * number, kind, moment) for number, moment in enumerate(MOMENTS)])
    run.check_exactly_once(STEPS, GROUPS)
    check_same(run, undisturbed, STEPS)
    report([kind] * len(lost), lost)
    assert statistics.median(lost) <= LIMITS[kind]


@pytest.mark.full
def test_the_driver_dies_and_the_job_is_started_again(tmp_path, undisturbed):
    run = Watched(tmp_path / "run", *words(tmp_path, "run"))
    for number, moment in enumerate(MOMENTS):
        done = 3 + 3 * number
        run.wait_for_step(done)
        time.sleep(moment * run.step_s())
        run.process.kill()
        struck = time.monotonic()
        run.process.communicate()
        assert not run.left(90), (
            "what the driver started outlived it"
        )  # Ray's own agents look for its end for 60 s
        run.start()
        run.wait_for_step(done + 1)
        print(f"driver: {time.monotonic() - struck:.1f} s until a new step")
    code, _, error = run.finish()
    assert code == 0, error
    Run(tmp_path / "run").check_exactly_once(STEPS, GROUPS)
    check_same(Run(tmp_path / "run"), undisturbed, STEPS)


@pytest.mark.full
def test_sigterm_leaves_a_checkpoint_and_the_run_goes_on_with_other_learners(tmp_path, undisturbed):
    run = Watched(tmp_path / "run", *words(tmp_path, "run", "trainer.checkpoint_every=0"))
    run.wait_for_step(5)
    run.process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    code, out, error = run.finish(60)
    assert code == 0 and "stopped by SIGTERM after step" in out, (out, error)
    print(f"stopped {time.monotonic() - asked:.1f} s after SIGTERM")
    assert not run.left() and not (run.run_dir / "summary.json").exists()
    stopped = Run(run.run_dir)
    assert (
        5 <= len(stopped.metrics) < STEPS
        and (run.run_dir / f"checkpoints/step-{len(stopped.metrics)}/complete.json").exists()
    )
    (tmp_path / "moved").mkdir()
    shutil.move(run.run_dir, tmp_path / "moved" / "run")
    other = Watched(
        tmp_path / "moved" / "run",
        *words(
            tmp_path / "moved",
            "run",
            "learner.num_workers=2",
            "learner.zero_stage=3",
            "rollout.num_engines=2",
        ),
    )
    code, _, error = other.finish()
    assert code == 0, error
    other = Run(other.run_dir)
    other.check_exactly_once(STEPS, GROUPS)
    assert other.metrics[: len(stopped.metrics)] == stopped.metrics
    check_same(other, undisturbed, STEPS, exact=False)


@pytest.mark.full
def test_a_run_that_ended_or_is_stopped_goes_on_bit_for_bit(tmp_path, undisturbed):
    """Lengthened from 7 steps to 16, and then again from the checkpoint of step 7, although it had gone
    further."""
    run = Watched(tmp_path / "run", *words(tmp_path, "run", "trainer.steps=7"))
    code, out, error = run.finish()
    assert code == 0 and "finished 7 steps" in out, error
    run.words = words(tmp_path, "run", "trainer.checkpoint_every=7")
    run.start()
    run.wait_for_step(10)
    run.kill_and_start()
    code, out, error = run.finish()
    assert code == 0 and "continuing after step 7" in out, error
    check_same(Run(run.run_dir), undisturbed, STEPS)


@pytest.mark.full
def test_asynchronous_runs_lose_and_repeat_nothing(tmp_path):
    """Which policy samples a repeated block may differ then; each sequence still enters once, within the
    bound."""
    done = run_with_three_deaths(tmp_path, "rollout.max_staleness=1")
    assert {row["step"] - row["policy_version"] for row in done.rollouts} <= {0, 1}


@pytest.mark.full
def test_what_hangs_is_killed(tmp_path, undisturbed):
    """A stopped process looks alive to the system: an engine and the coordinator are found by their silence,
    a learner by Ray Train's health check."""
    run = Watched(
        tmp_path / "run", *words(tmp_path, "run", "rollout.stall_timeout_s=8", "learner.timeout_s=20")
    )
    for step, kind in ((3, "engine"), (6, "coordinator"), (9, "learner")):
        run.wait_for_step(step)
        run.kill(kind, number=signal.SIGSTOP)
        struck = time.monotonic()
        run.wait_for_step(step + 3)
        print(f"hung {kind}: {time.monotonic() - struck:.1f} s until three steps later")
    code, _, error = run.finish()
    assert code == 0 and not run.left(), error
    assert {event.split(":")[0] for event in run.events() if "said nothing for" in event} == {
        "engine",
        "coordinator",
    }
    Run(run.run_dir).check_exactly_once(STEPS, GROUPS)
    check_same(Run(run.run_dir), undisturbed, STEPS)


@pytest.mark.full
def test_exhausted_limits_end_the_run_with_its_cause_and_a_usable_checkpoint(tmp_path, undisturbed):
    run = Watched(tmp_path / "run", *words(tmp_path, "run", "trainer.max_failures=0"))
    run.wait_for_step(6)
    run.kill("learner")
    # The run had saved a checkpoint, and goes on from there. It fails again before the next one.
    run.wait_until(lambda: run.done() == 4)
    run.wait_for_step(5)
    run.kill("learner")
    code, _, error = run.finish()
    restart, sentence = error.splitlines()
    assert code == 1 and restart == "learners: restarting after 1 failures, with 4 saved steps"
    assert "worker process has died" in sentence and "after 4 saved steps" in sentence
    assert not run.left()
    run.start()
    assert run.finish()[0] == 0
    check_same(Run(run.run_dir), undisturbed, STEPS)


class WatchedEvaluation(Watched):
    command = "evaluate"


@pytest.mark.full
def test_an_evaluation_does_not_wait_for_an_engine_that_hangs(tmp_path, undisturbed):
    """Nor does it for one that cannot be placed. Its figures are those of an evaluation without a fault."""
    model = undisturbed.dir / f"checkpoints/step-{STEPS}/hf"
    common = (model, "--data", "sums", "--samples", "4", "data.format=tasks")
    calm = WatchedEvaluation(tmp_path / "calm", *common, f"run.dir={tmp_path / 'calm'}")
    code, expected, error = calm.finish()
    assert code == 0, error
    stopped = WatchedEvaluation(
        tmp_path / "stopped", *common, f"run.dir={tmp_path / 'stopped'}", "rollout.stall_timeout_s=8"
    )
    deadline = time.monotonic() + 120
    while not stopped.find("engine") and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(8.0)  # its heartbeats begin after its first imports; it loads vLLM then
    stopped.kill("engine", number=signal.SIGSTOP)
    code, out, error = stopped.finish(240)
    assert code == 0 and not stopped.left(), error
    # The last line names the folder.
    assert out.splitlines()[-2] == expected.splitlines()[-2]
