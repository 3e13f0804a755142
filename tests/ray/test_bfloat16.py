"""A run whose learners are in bfloat16 and whose engines are in float32."""

from pathlib import Path

import pytest

from srft_ray import fit, load_config
from srft_ray.train.parity import THRESHOLDS
from tests.ray.conftest import Run

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("local_ray")]

ROOT = Path(__file__).parents[2]
HALF = 15


def train(folder: Path, name: str, *settings: str) -> Run:
    config = load_config("examples/quickstart.yaml", [f"run.dir={folder}", f"run.name={name}", *settings])
    fit(config)
    return Run(config.run_dir)


def final(run: Run) -> dict[str, dict[str, float]]:
    """The figures after the last step, by evaluation set."""
    return {record["set"]: record for record in run.evaluations if record["step"] == len(run.metrics)}


def test_it_learns_as_in_float32_and_goes_on_at_another_zero_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    bfloat16 = ("model.dtype=bfloat16", "rollout.dtype=float32")
    train(tmp_path, "bfloat16", *bfloat16, f"trainer.steps={HALF}", "learner.zero_stage=1")
    run = train(tmp_path, "bfloat16", *bfloat16, "learner.zero_stage=3")
    run.check_exactly_once(steps=30, groups_per_step=16)
    differences = [record["parity/abs_logprob_diff"] for record in run.metrics]
    assert all(0 < difference < THRESHOLDS["bfloat16"] / 10 for difference in differences)
    whole = final(train(tmp_path, "float32"))
    assert whole.keys() == final(run).keys()
    for name, figures in final(run).items():
        assert whole[name]["avg_low"] < figures["avg"] < whole[name]["avg_high"], name
