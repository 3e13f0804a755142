"""What `srft-ray plan` says of the time of a step, from figures that the config states."""

import json
from pathlib import Path

import pytest

from algorithms import SRFT
from srft_ray.commands.cli import main
from srft_ray.commands.pipeline_model import PhaseTimeModel, PipelineModel, Setting
from srft_ray.commands.plan_time import stated_model
from tests.conftest import base_config
from tests.unit.test_scale import config_of

STATED = {
    "learner_tflops": 100.0,
    "utilization": 0.5,
    "engine_tokens_per_s": 1000.0,
    "engine_token_ms": 10.0,
    "network_gb_per_s": 10.0,
    "mean_prompt_tokens": 100.0,
    "mean_response_tokens": 200.0,
}


def stated(tmp_path: Path, **learner: object) -> PipelineModel:
    config = config_of(
        tmp_path, hardware=STATED, rollout={"num_rollouts": 8, "max_new_tokens": 500}, learner=learner
    )
    return stated_model(config, SRFT().stage(0, 1), "cuda", parameters=10**9)


def test_the_stated_model_by_hand(tmp_path: Path):
    """16 groups: 128 rollouts and 16 demonstrations of 300 tokens are 43,200: 6e9 · 43,200 / (100e12 · 0.5) =
    5.184 s on one learner. 25,600 tokens generated at 1,000 a second, and 500 · 10 ms for the longest
    response; 2e9 bytes at 10e9 a second."""
    model = stated(tmp_path)
    assert vars(model.learner) == pytest.approx({"fixed_s": 0.0, "parallel_s": 5.184, "per_worker_s": 0.0})
    assert vars(model.generation) == pytest.approx({"fixed_s": 5.0, "parallel_s": 25.6, "per_worker_s": 0.0})
    assert model.publish == model.overhead == model.overlapped_overhead == PhaseTimeModel(0.2)
    assert stated(tmp_path, activation_checkpointing=True).learner.parallel_s == pytest.approx(5.184 * 8 / 6)
    assert stated(
        tmp_path, activation_checkpointing=True, mini_batches=2
    ).learner.parallel_s == pytest.approx(5.184 * 10 / 6)
    times = model.step_times(Setting(8, 4))
    assert times.step_s == pytest.approx(5.0 + 3.2 + 1.296 + 0.4)
    assert times.bottleneck == "generation"


def test_plan_says_seconds_or_what_to_state(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "config.yaml"
    values = base_config(
        tmp_path, tiny_model, rollout={"num_rollouts": 2, "max_new_tokens": 32, "num_engines": 2}
    )
    path.write_text(json.dumps(values))
    assert main(["plan", str(path), "hardware.learner_tflops=1"]) == 0
    said = capsys.readouterr().out
    assert (
        "time          unknown: for seconds per step and the best split state "
        "hardware.utilization, hardware.engine_tokens_per_s" in said
    )
    path.write_text(json.dumps(values | {"hardware": STATED | {"engine_tokens_per_s": 10.0}}))
    assert main(["plan", str(path)]) == 0
    said = capsys.readouterr().out
    assert (
        "time          80.3 s per step with staleness 0, bound by generation "
        "(generation 80.3, learner 0.0, publish 0.0, overhead 0.0)" in said
    )
    assert "coordinator: 2 calls/s, about 0% of a CPU core" in said
    assert "best split of 3 devices: 2 engines and 1 learners, 80.3 s per step with staleness 1" in said
    assert main(["plan", str(path), "hardware.utilization=1.5"]) == 2
    assert "hardware.utilization must be at most 1, not 1.5." in capsys.readouterr().err
