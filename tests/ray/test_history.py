"""A run that chooses prompts by their history is disturbed; it chooses the same prompts."""

import time

import pytest

from tests.ray.conftest import Run
from tests.ray.faults import GROUPS, STEPS, Watched, check_same, words

pytestmark = pytest.mark.full
SETTINGS = (
    "algorithm.name=srpo",
    "data.path=sums",
    "data.size=24",
    "rollout.num_rollouts=2",
)


def finished(run: Watched) -> Run:
    code, _, error = run.finish()
    assert code == 0, (error, run.events())
    assert not run.left()
    done = Run(run.run_dir)
    done.check_exactly_once(STEPS, GROUPS)
    return done


def test_holder_learner_and_engine_die(tmp_path):
    folders = [tmp_path / name for name in ("calm", "disturbed")]
    for folder in folders:
        folder.mkdir()
    calm = finished(Watched(folders[0] / "run", *words(folders[0], "run", *SETTINGS)))
    assert sum(record["groups/passed_over"] for record in calm.metrics) > 0
    run = Watched(folders[1] / "run", *words(folders[1], "run", *SETTINGS))
    # The learner dies between two checkpoints, so that the history goes back with it.
    for step, kind in ((2, "coordinator"), (6, "learner"), (11, "engine")):
        run.wait_for_step(step)
        time.sleep(0.2 * run.step_s())
        run.kill(kind)
    disturbed = finished(run)
    check_same(disturbed, calm, STEPS)
    chosen = [
        {(row["step"], row["group_id"], row["row"]) for row in done.ledger} for done in (calm, disturbed)
    ]
    assert chosen[0] == chosen[1]
    histories = [done.dir / f"checkpoints/step-{STEPS}/history.npy" for done in (calm, disturbed)]
    assert histories[0].read_bytes() == histories[1].read_bytes()
