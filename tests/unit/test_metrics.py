"""What a step's record says of its time, and the gauges that Ray exports of it."""

import math
from pathlib import Path

import pytest

from srft_ray.observe.loggers import RAY_GAUGES, LoggerSettings, ray_metrics
from srft_ray.observe.metrics import utilization

RECORD = {"step": 3, "time/step": 4.0, "time/learner": 1.0, "time/generation": 3.0, "tokens": 1000.0}


def test_utilization_is_shares_of_the_step():
    assert utilization(RECORD) == {
        "utilization/learner": 0.25,
        "utilization/engine": 0.75,
        "tokens/per_second": 250.0,
    }


@pytest.mark.parametrize(("generation", "share"), [(0.0, 0.0), (9.0, 1.0)])
def test_engines_that_were_not_used_or_worked_ahead(generation, share):
    assert utilization({**RECORD, "time/generation": generation})["utilization/engine"] == share


class Gauge:
    """Records as Ray's does, without Ray."""

    all: dict[str, list] | None = None

    def __init__(self, name, description, tag_keys):
        assert description and tag_keys == ("run",)
        self.values = self.all.setdefault(name, [])

    def set(self, value, tags):
        self.values.append((value, tags["run"]))


def test_gauges_are_set_from_the_keys_that_are_there(monkeypatch):
    monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)
    monkeypatch.setattr(Gauge, "all", {})
    log = ray_metrics(LoggerSettings("mine", Path(".")))
    log(3, {**RECORD, **utilization(RECORD), "reward/mean": math.nan, "loss": 1.0})
    log(4, {"eval/heldout/avg@8": 50.0})
    log(-1, {})
    assert set(Gauge.all) == {f"srft_ray_{name}" for name in RAY_GAUGES}
    found = {name.removeprefix("srft_ray_"): values for name, values in Gauge.all.items() if values}
    assert math.isnan(found.pop("reward_mean")[0][0])
    assert found == {
        "step": [(3.0, "mine")],
        "step_seconds": [(4.0, "mine")],
        "tokens_per_second": [(250.0, "mine")],
        "learner_utilization": [(0.25, "mine")],
        "engine_utilization": [(0.75, "mine")],
    }


def test_the_page_on_clusters_lists_every_gauge():
    page = (Path(__file__).resolve().parents[2] / "docs/clusters.md").read_text()
    for name, (key, meaning) in RAY_GAUGES.items():
        assert f"| `srft_ray_{name}` | `{key}` | {meaning} |" in page
