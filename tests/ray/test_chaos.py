"""Twenty random kills in one long run: it completes, each sequence once, nothing is left on the cluster."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ray.conftest import Run
from tests.ray.faults import KINDS, ROOT, Nodes, Watched, check_same, processes

KILLS, STEPS, GROUPS, SEED = 20, 100, 8, 20


@pytest.mark.full
def test_twenty_random_kills(tmp_path):
    words = (
        ROOT / "examples/quickstart.yaml",
        f"trainer.steps={STEPS}",
        f"trainer.groups_per_step={GROUPS}",
        "trainer.evaluate_every=0",
        "trainer.checkpoint_every=5",
        "trainer.keep_checkpoints=2",
        "trainer.max_failures=30",
        "rollout.max_restarts=30",
    )
    calm = Watched(tmp_path / "calm", *words, f"run.dir={tmp_path}", "run.name=calm")
    assert calm.finish()[0] == 0
    nodes = Nodes(f"SRFT_TEST={tmp_path / 'run'}")
    nodes.join(cpus=6)
    run, rng, killed = (
        Watched(
            tmp_path / "run",
            *words,
            f"run.dir={tmp_path}",
            "run.name=run",
            address=nodes.address,
            RAY_AUTH_MODE="disabled",
        ),
        random.Random(SEED),
        [],
    )
    began = time.monotonic()
    try:
        run.wait_for_step(2)
        while len(killed) < KILLS:
            kind = rng.choice(list(KINDS))
            time.sleep(rng.random() * run.step_s())
            run.kill(kind, rng)
            killed.append(kind)
            run.wait_for_step(min(STEPS, run.done() + rng.choice((1, 2, 3))))
        assert run.done() < STEPS, "the run ended before the last kill"
        code, _, error = run.finish(600)
        assert code == 0, (error, run.events())
        check_nothing_left(run, nodes)
    finally:
        run.process.kill()
        nodes.shutdown()
        counts = {kind: killed.count(kind) for kind in KINDS}
        print(f"{len(killed)} kills: {counts} in {time.monotonic() - began:.0f} s")
    done = Run(run.run_dir)
    done.check_exactly_once(STEPS, GROUPS)
    check_same(done, Run(tmp_path / "calm"), STEPS)


def check_nothing_left(run, nodes):
    """On a cluster that goes on: no actor of the run, no placement group, no file in shared memory."""
    deadline = time.monotonic() + 30
    actors = (
        "MapWorker",
        "RayTrainWorker",
        "Coordinator",
        "TrainController",
        "SplitCoordinator",
        "DatasetManager",
        "PlacementGroupCleaner",
    )
    while left := [pid for name in actors for pid in processes(run.token, f"ray::{name}")] + processes(
        run.token, KINDS["verifier"]
    ):
        assert time.monotonic() < deadline, f"processes left: {left}"
        time.sleep(0.2)
    code = (
        f"import ray; ray.init({nodes.address!r}, logging_level=40); "
        "print(*(g['state'] for g in ray.util.placement_group_table().values()))"
    )
    states = subprocess.run(
        [sys.executable, "-c", code],
        env=run.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert set(states.split()) <= {"REMOVED"}, states
    assert not list(Path("/dev/shm").glob("srft_ray_weights_*"))
