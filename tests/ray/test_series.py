"""Runs of a comparison that share engines and learners' processes equal runs that were trained alone."""

import re
from pathlib import Path

import pytest
import yaml

from srft_ray import fit, load_config
from srft_ray.commands.variants import Variant
from srft_ray.observe import evaluation_ledger
from tests.ray.conftest import Run, what
from tests.ray.faults import KINDS, ROOT, SMALL, Watched, check_same, processes

pytestmark = pytest.mark.full
STEPS = 6
NAMES = ("grpo-seed4", "srft-seed4")


class Series(Watched):
    """A comparison of two algorithms; `run_dir` is that of the run that is looked at."""

    command = "compare"

    def __init__(self, folder: Path, *more: str, **environment: str) -> None:
        self.folder = folder
        super().__init__(
            folder / "quickstart-compare" / NAMES[1],
            ROOT / "examples/quickstart.yaml",
            *("--algorithms", "grpo,srft", "--seeds", 4),
            f"run.dir={folder}",
            f"trainer.steps={STEPS}",
            "trainer.checkpoint_every=2",
            "trainer.max_failures=4",
            *SMALL,
            *more,
            **environment,
        )

    def at(self, number: int) -> None:
        """From now on the run with this number is looked at."""
        self.run_dir = self.folder / "quickstart-compare" / NAMES[number]


def check_equal(run: Run, alone: Run) -> None:
    """Metrics without times, ledgers, evaluations and weights, bit for bit."""
    check_same(run, alone, STEPS)
    assert [what(one) for one in run.evaluations] == [what(one) for one in alone.evaluations]
    sets = {(one["set"], one["step"]) for one in alone.evaluations}
    assert sets
    for name, step in sets:
        tables = [evaluation_ledger.read(one.dir, name, step) for one in (run, alone)]
        assert tables[0].equals(tables[1])


@pytest.fixture(scope="module")
def alone(tmp_path_factory, series_config) -> list[Run]:
    """The runs, each by a call of `fit` of its own."""
