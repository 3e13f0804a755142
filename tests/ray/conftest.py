"""One local Ray for the tests that call `fit` in this process."""

from collections import Counter
from pathlib import Path

import pyarrow.dataset
import pytest
import ray

from srft_ray.config.schema import ClusterSection
from srft_ray.observe.journal import read_json_lines
from srft_ray.run.cluster import start_ray


@pytest.fixture(scope="session")
def local_ray():
    start_ray(ClusterSection(num_cpus=8), 8)
    yield
    ray.shutdown()


TIMES = (
    "time/",
    "engines",
    "learners",
    "queue/",
    "publications/",
    "utilization/",
    "tokens/per_second",
)  # metrics that say how fast, not what


def what(record):
    """The figures of a record that do not depend on the clock or on how many processes there are."""
    return {key: value for key, value in record.items() if not key.startswith(TIMES)}


class Run:
    """What a run left in its directory."""

    def __init__(self, run_dir: Path):
        self.dir = run_dir
        self.metrics = read_json_lines(run_dir / "metrics.jsonl")
        self.evaluations = read_json_lines(run_dir / "evaluations.jsonl")
        self.ledger = pyarrow.dataset.dataset(run_dir / "groups", format="parquet").to_table().to_pylist()
        self.rollouts = [row for row in self.ledger if row["origin"] == "rollout"]

    def check_exactly_once(self, steps: int, groups_per_step: int) -> None:
        """Every step's groups are there, each sequence once."""
        keys = Counter((row["step"], row["group_id"], row["sample"]) for row in self.ledger)
        assert set(keys.values()) == {1}
        groups = Counter(step for step, _ in {(row["step"], row["group_id"]) for row in self.ledger})
        assert groups == dict.fromkeys(range(steps), groups_per_step)
        assert [record["step"] for record in self.metrics] == list(range(steps))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The short run that others disturb, to its end."""
    from tests.ray.faults import Watched, words  # which needs `Run`

    folder = tmp_path_factory.mktemp("undisturbed")
    run = Watched(folder / "run", *words(folder, "run"))
    code, _, error = run.finish()
    assert code == 0, error
    return Run(folder / "run")
