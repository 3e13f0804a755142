"""SFT that stops at the lowest held-out loss, and what goes on from its model."""

import json
from pathlib import Path

import pytest
import yaml

from srft_ray import fit, make_config
from srft_ray.commands.compare import compare
from srft_ray.commands.compare_variants import read_variants
from srft_ray.config.load import load_config
from srft_ray.observe.journal import read_json_lines
from tests.conftest import base_config
from tests.ray.conftest import Run
from tests.ray.faults import ROOT, SMALL, Watched

pytestmark = pytest.mark.usefixtures("local_ray")
EVERY_STEP = {"steps": 20, "evaluate_every": 1, "checkpoint_every": 1, "keep_checkpoints": 1}
LOWEST_LOSS = {"keep_best": "eval/held/demo_loss", "keep_best_mode": "min"}


def config_for(folder: Path, model: Path, patience: int):
    values = base_config(
        folder,
        model,
        algorithm={"name": "sft"},
        learner={"num_workers": 2, "lr": 0.1},  # so large that the loss soon rises
        trainer={**EVERY_STEP, **LOWEST_LOSS, "patience": patience},
        evaluation={"samples": 1, "data": {"held": {"max_prompts": 6}}},
    )
    return make_config(values)


def test_training_ends_when_the_held_out_loss_rises_and_the_best_is_the_model(tmp_path, tiny_model):
    result = fit(config_for(tmp_path, tiny_model, patience=1))
    run = Run(result.run_dir)
    losses = [record["demo_loss"] for record in run.evaluations]
    best = min(range(1, len(losses)), key=losses.__getitem__)
    assert result.steps == len(losses) - 1 == best + 1 < EVERY_STEP["steps"] and not result.stopped
    assert result.model == str(result.run_dir / f"checkpoints/step-{best}/hf")
    assert result.summary["model_step"] == best and result.summary["steps"] == best + 1
    kept = {folder.name for folder in (result.run_dir / "checkpoints").glob("step-*")}
    assert kept == {f"step-{best}", f"step-{best + 1}"}
    events = [event["message"] for event in read_json_lines(result.run_dir / "events.jsonl")]
    why = f"training ends after step {best + 1}: 1 evaluations were not better by eval/held/demo_loss"
    assert events.count(why) == 1

    again = fit(config_for(tmp_path, tiny_model, patience=1))
    assert (again.model, again.steps) == (result.model, result.steps), "nothing is repeated"
    assert Run(result.run_dir).evaluations == run.evaluations

    more = fit(config_for(tmp_path, tiny_model, patience=2))
    longer = Run(result.run_dir)
    assert more.steps > result.steps and longer.evaluations[: len(losses)] == run.evaluations


def watched(folder: Path) -> Watched:
    return Watched(
        folder / "run",
        ROOT / "examples/quickstart.yaml",
        f"run.dir={folder}",
        *("run.name=run", "algorithm.name=sft", "learner.lr=0.01", "trainer.steps=20"),
        *("trainer.evaluate_every=1", "trainer.checkpoint_every=1", "trainer.patience=2"),
        *("trainer.keep_best=eval/heldout/demo_loss", "trainer.keep_best_mode=min"),
        *SMALL,
    )


@pytest.mark.full
def test_a_run_whose_learner_and_driver_are_killed_ends_at_the_same_step(tmp_path):
    calm, struck = watched(tmp_path / "calm"), None
    try:
        assert calm.finish()[0] == 0
        struck = watched(tmp_path / "struck")
        struck.wait_for_step(1)
        struck.kill("learner")
        struck.wait_for_step(2)
        struck.kill_and_start()
        code, _, error = struck.finish()
        assert code == 0, error
    finally:
        for run in filter(None, (calm, struck)):
            run.process.kill()
    summaries = [json.loads((run.run_dir / "summary.json").read_text()) for run in (calm, struck)]
    assert summaries[0]["steps"] == summaries[1]["steps"] < 20
    assert summaries[0]["model_step"] == summaries[1]["model_step"] == summaries[0]["steps"] - 2
    assert Run(struck.run_dir).evaluations == Run(calm.run_dir).evaluations


@pytest.mark.full
def test_the_strong_baselines_of_the_examples(tmp_path):
    """The variants as they are shipped, with small evaluation sets, and shorter."""
    small = ["trainer.steps=4", "evaluation.samples=1", "evaluation.data.heldout.size=16"]
    overrides = [f"run.dir={tmp_path}", *small, "evaluation.data.harder.size=8"]
    config = load_config(ROOT / "examples/quickstart.yaml", overrides)
    variants = read_variants(ROOT / "examples/strong-baselines.yaml")
    variants["sft"]["trainer"] |= {"steps": 6, "evaluate_every": 2, "checkpoint_every": 2}
    text = compare(config, [], [0], variants)
    folder = tmp_path / "quickstart-compare"
    summary = json.loads((folder / "sft-seed0/summary.json").read_text())
    started = yaml.safe_load((folder / "sft_then_grpo-seed0/config.yaml").read_text())
    assert started["model"]["path"] == summary["model"]
    before = read_json_lines(folder / "sft_then_grpo-seed0/evaluations.jsonl")[0]
    chosen = [
        record
        for record in read_json_lines(folder / "sft-seed0/evaluations.jsonl")
        if record["step"] == summary["model_step"] and record["set"] == before["set"]
    ]
    assert before["demo_loss"] == pytest.approx(chosen[0]["demo_loss"], rel=1e-6), "it begins where SFT ended"
    assert compare(config, [], [0], variants) == text, "nothing is repeated"
