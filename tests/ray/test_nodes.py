"""Clusters of several local nodes: nodes join, are drained, and die; learners and engines follow, and the
curve stays the same."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from srft_ray.observe.journal import read_json_lines
from tests.ray.conftest import Run
from tests.ray.faults import ROOT, Nodes, Watched, check_same

GROUPS = 12
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled"}


def words(folder, steps, *more):
    return (
        ROOT / "examples/quickstart.yaml",
        f"run.dir={folder}",
        "run.name=run",
        f"trainer.steps={steps}",
        f"trainer.groups_per_step={GROUPS}",
        "trainer.evaluate_every=0",
        "learner.resources={learner: 1}",
        "rollout.resources={engine: 1}",
        "trainer.max_failures=4",
        *more,
    )


def learners_of(run):
    return [0] + [int(record["learners"]) for record in read_json_lines(run.run_dir / "metrics.jsonl")]


def engines_of(run):
    return [0] + [int(record["engines"]) for record in read_json_lines(run.run_dir / "metrics.jsonl")]


def wait_until(run, condition, timeout_s=180):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert run.process.poll() is None, run.process.communicate()
        assert time.monotonic() < deadline, (learners_of(run), run.events())
        time.sleep(0.2)


@contextlib.contextmanager
def to_the_end(run, fixed_size, exact=True):
    """What is done to the run in the block; then it must end well, each sequence once, and be the same as the
    undisturbed one."""
    try:
        yield
        code, _, error = run.finish()
        assert code == 0, (error, run.events())
    finally:
        run.process.kill()
        print("learners of each step:", learners_of(run))
        print("engines of each step:", engines_of(run))
        print("\n".join(run.events()))
    done = Run(run.run_dir)
    done.check_exactly_once(60, GROUPS)
    check_same(done, fixed_size, 60, exact)


@pytest.fixture
def nodes(tmp_path):
    cluster = Nodes(f"SRFT_TEST={tmp_path / 'run'}")
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def fixed_size(tmp_path_factory):
    """The same run with one learner and one engine, undisturbed."""
    folder = tmp_path_factory.mktemp("fixed")
    run = Watched(folder / "run", *words(folder, 60))
    code, _, error = run.finish()
    assert code == 0, error
    return Run(folder / "run")


@pytest.mark.full
def test_learners_and_engines_follow_the_nodes(tmp_path, nodes, fixed_size):
    """Three nodes; one joins, another is killed."""
    first, _ = nodes.join(), nodes.join()
    run = Watched(
        tmp_path / "run",
        *words(
            tmp_path,
            60,
            "learner.num_workers=[1,3]",
            "rollout.num_engines=[1,3]",
            "trainer.checkpoint_every=5",
            "learner.resize_interval_s=5",
        ),
        address=nodes.address,
        **ENVIRONMENT,
    )
    with to_the_end(run, fixed_size, exact=False):
        run.wait_for_step(5)
        nodes.join()
        wait_until(run, lambda: learners_of(run)[-1] == engines_of(run)[-1] == 3 and run.done() > 10)
        nodes.kill(first)
        struck = run.done()
        wait_until(run, lambda: run.done() > struck and learners_of(run)[-1] == 2)


@pytest.mark.full
def test_a_worker_node_dies_at_three_moments(tmp_path, nodes, fixed_size):
    """The one with the learner; another takes its place. One learner, so that everything is the same bit for
    bit."""
    nodes.join(), nodes.join()
    run = Watched(
        tmp_path / "run",
        *words(tmp_path, 60, "trainer.checkpoint_every=4"),
        address=nodes.address,
        **ENVIRONMENT,
    )
    with to_the_end(run, fixed_size):
        for number, moment in enumerate((0.15, 0.5, 0.85)):
            run.wait_for_step(4 + 12 * number)
            ordinary = run.step_s()
            time.sleep(moment * ordinary)
            done, struck = run.done(), time.monotonic()
            nodes.kill(nodes.of(run.find("learner")[0]))
            nodes.join()
            run.wait_for_step(done + 3)
            print(f"node: {time.monotonic() - struck - 3 * ordinary:.1f} s lost")


@pytest.mark.full
def test_a_node_that_is_drained_leaves_a_checkpoint_first(tmp_path, nodes, fixed_size):
    """The notice of a preemption: the learners leave with a checkpoint, and go on elsewhere; nothing is
    repeated."""
    nodes.join(), nodes.join()
    run = Watched(
        tmp_path / "run",
        *words(tmp_path, 60, "trainer.checkpoint_every=0"),
        address=nodes.address,
        **ENVIRONMENT,
    )
    with to_the_end(run, fixed_size):
        run.wait_for_step(10)
        node = nodes.of(run.find("learner")[0])
        subprocess.run(
            [
                Path(sys.executable).parent / "ray",
                "drain-node",
                "--address",
                nodes.address,
                "--node-id",
                node.node_id,
                "--reason",
                "DRAIN_NODE_REASON_PREEMPTION",
                "--reason-message",
                "test",
                "--deadline-remaining-seconds",
                "60",
            ],
            env=run.environment,
            check=True,
            capture_output=True,
            timeout=60,
        )
        wait_until(run, lambda: any((run.run_dir / "checkpoints").glob("step-*/complete.json")))
        saved = run.done()
        wait_until(run, lambda: run.done() > saved)
        assert node is not nodes.of(run.find("learner")[0])


@pytest.mark.full
@pytest.mark.parametrize("stop", [False, True])
def test_too_few_nodes_for_too_long_end_the_run(tmp_path, nodes, stop):
    """With what it has, and in its own time if it is asked to stop."""
    nodes.join()
    lost = nodes.join()
    run = Watched(
        tmp_path / "run",
        *words(
            tmp_path,
            60,
            "learner.num_workers=[2,3]",
            "trainer.checkpoint_every=2",
            f"learner.start_timeout_s={600 if stop else 20}",
        ),
        address=nodes.address,
        **ENVIRONMENT,
    )
    run.wait_for_step(4)
    nodes.kill(lost)
    if stop:
        wait_until(run, lambda: any("restarting after a failure" in event for event in run.events()))
        run.process.terminate()
    code, out, error = run.finish(120)
    if stop:
        assert code == 0 and "stopped by SIGTERM after step" in out, (out, error)
    else:
        assert (
            code == 1
            and "No learners could be placed for learner.start_timeout_s=20 s" in error
            and len(error.splitlines()) == 1
        ), error
    assert list((run.run_dir / "checkpoints").glob("step-*/complete.json"))
