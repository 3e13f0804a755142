"""`srft-ray scale` where no run is started: measurements, findings, and settings that are refused."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from srft_ray.commands.cli import main
from srft_ray.commands.pipeline_model import Machine, Measurement, Setting
from srft_ray.commands.scale import WARM_UP, analyse, measure, scale
from srft_ray.commands.scale_report import markdown, write
from srft_ray.config.load import make_config
from srft_ray.errors import UserError
from srft_ray.observe.journal import append_json
from tests.conftest import base_config
from tests.unit.test_pipeline_model import measured


def config_of(tmp_path: Path, **sections: dict):
    return make_config(
        {
            "run": {"name": "r", "dir": str(tmp_path), "device": "cpu"},
            "model": {"path": "m"},
            "data": {"path": "d.jsonl"},
            **sections,
        }
    )


def test_measurements_leave_out_warm_up_and_the_last_step(tmp_path: Path):
    for step in range(8):
        counted = WARM_UP <= step < 7
        append_json(
            tmp_path / "metrics.jsonl",
            {
                "step": step,
                "time/step": (2.0 + 0.1 * step) if counted else 99.0,
                "time/generation": 0.5,
                "time/learner": 1.0,
                "time/publish": 0.1,
                "staleness/mean": 0.0,
                "tokens": 100.0 * (2.0 + 0.1 * step),
                "tokens/generated": 50.0 * (2.0 + 0.1 * step),
            },
        )
    found = measure(Setting(1, 1), tmp_path)
    assert found.step_s == pytest.approx(2.45) and found.overhead_s == pytest.approx(0.85)
    assert (found.tokens_per_s, found.generated_per_s) == pytest.approx((100.0, 50.0))
    assert (found.rollout_utilization, found.learner_utilization) == pytest.approx((0.5 / 2.45, 1.0 / 2.45))


def test_findings_as_text_json_and_picture(tmp_path: Path):
    findings = analyse(
        config_of(tmp_path), [measured(Setting(e, n)) for n in (1, 2) for e in (1, 2)], Machine(), None
    )
    text = write(findings, tmp_path / "scale")
    assert text == markdown(findings) and (tmp_path / "scale/scale.md").read_text() == text + "\n"
    row = (
        "| 2 | 1 | 0 | 10.100 | 4.500 | 5.000 | 0.300 | 0.300 "
        "| 45% | 50% | 0.00 | 0 | learner | 10.100 | +0.0% |"
    )
    assert row in text
    not_run = "| 4 | 4 | 0 | 5.400 | 2.500 | 2.000 | 0.600 | 0.300 | generation |"
    assert not_run in text
    assert "Median error of the step time of a setting predicted from the others: 0.0% (4 settings)." in text
    best = "2 engines and 2 learners, 8.200 s per step, bound by generation."
    assert f"Best split of 4 devices with staleness 0: {best}" in text
    kept = json.loads((tmp_path / "scale/scale.json").read_text())
    assert [row["step_s"] for row in kept["measured"]] == pytest.approx([14.1, 10.1, 12.2, 8.2])
    assert kept["median_error"] < 1e-9
    assert kept["best_split"][0]["engines"] == 2
    assert {"setting", "overhead_s", "bottleneck"} <= set(kept["measured"][0])
    assert (tmp_path / "scale/scale.png").stat().st_size > 1000


def test_rounding_errors_below_zero_have_no_sign(tmp_path: Path):
    """The last digits of sums and fits differ between CPUs: what rounds to zero is shown as zero."""
    almost_one = math.nextafter(1.0, 0.0)
    runs = [Measurement(Setting(engines, 1), almost_one, 0.5, 0.5, 0.0) for engines in (1, 2)]
    assert all(-1e-12 < run.overhead_s < 0.0 for run in runs)
    findings = analyse(config_of(tmp_path), runs, Machine(), None)
    below = [math.nextafter(run.step_s, 0.0) for run in runs]
    text = markdown(dataclasses.replace(findings, left_out=below))
    assert "-0." not in text and "| 0.000 |" in text and "| +0.0% |" in text


def test_what_one_setting_or_one_side_cannot_tell(tmp_path: Path):
    alone = markdown(analyse(config_of(tmp_path), [measured(Setting(1, 1))], Machine(), None))
    assert (
        "One setting alone cannot check the model" in alone
        and "Best split: unknown" in alone
        and "Predicted, not run" not in alone
    )
    side = markdown(
        analyse(config_of(tmp_path), [measured(Setting(e, 1)) for e in (1, 2)], Machine(cores=2), None)
    )
    assert (
        "| 4 | 1 | 0 |" in side
        and "| 1 | 2 | 0 |" not in side
        and "Best split: unknown" in side
        and "share 2 CPU cores" in side
    )


@pytest.mark.parametrize(
    ("counts", "sections", "wanted"),
    [
        ({"learners": [3]}, {}, "trainer.groups_per_step=16 is not divisible by 3 learners"),
        (
            {"steps": 4},
            {},
            "--steps 4 leaves nothing to measure: the first 3 steps and the last do not count; "
            "pass at least 5.",
        ),
        ({"devices": 1}, {}, "--devices 1 cannot be split"),
        ({}, {"algorithm": {"name": "sft"}}, "sft does not sample rollouts in every step"),
    ],
)
def test_settings_that_cannot_be_run(tmp_path: Path, counts: dict, sections: dict, wanted: str):
    with pytest.raises(UserError) as caught:
        scale(
            config_of(tmp_path, **sections),
            **{"engines": [1], "learners": [1], "staleness": None, "steps": 12, "devices": None, **counts},
        )
    assert wanted in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--engines", "1,x"], "--engines 1,x are not whole numbers separated by commas, such as 1,2."),
        (["--learners", "0,1"], "--learners 0,1 must be at least 1 each."),
        (["--staleness=-1"], "--staleness -1 must be at least 0 each."),
        (["model.path=./none"], "model.path"),
    ],
)
def test_options_that_are_no_numbers(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], words: list[str], wanted: str
):
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(base_config(tmp_path, tiny_model)))
    assert main(["scale", str(path), *words]) == 2
    error = capsys.readouterr().err
    assert wanted in error and error.count("\n") == 1 and not (tmp_path / "runs").exists()
