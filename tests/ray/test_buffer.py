"""A run that buffers groups is disturbed: every sequence enters an update once, with the same figures."""

from collections import Counter

import pytest

from tests.ray.conftest import Run
from tests.ray.faults import STEPS, Watched, check_same, words

pytestmark = pytest.mark.full
SETTINGS = (
    "algorithm.name=relift_buffered",
    "algorithm.buffer_size=5",
    "rollout.num_rollouts=2",
)


def finished(run: Watched) -> Run:
    code, _, error = run.finish()
    assert code == 0, (error, run.events())
    assert not run.left()
    return Run(run.run_dir)


def test_a_learner_dies(tmp_path):
    folders = [tmp_path / name for name in ("calm", "disturbed")]
    for folder in folders:
        folder.mkdir()
    calm = finished(Watched(folders[0] / "run", *words(folders[0], "run", *SETTINGS)))
    run = Watched(folders[1] / "run", *words(folders[1], "run", *SETTINGS))
    run.wait_for_step(6)
    run.kill("learner")
    check_same(finished(run), calm, STEPS)
    keys = Counter((row["step"], row["group_id"], row["sample"]) for row in calm.ledger)
    assert set(keys.values()) == {1}
    demonstrations = Counter(row["step"] for row in calm.ledger if row["origin"] == "demo")
    with_update = {record["step"] for record in calm.metrics if record.get("buffer/loss") is not None}
    assert with_update == set(demonstrations) and set(demonstrations.values()) == {5}
