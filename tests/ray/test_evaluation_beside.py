"""With staleness, engines sample an evaluation while learners update: by the right version, and once."""

import os
import signal
from collections import Counter

import pytest
import torch

from srft_ray.observe import evaluation_ledger
from srft_ray.observe.journal import read_json_lines
from tests.ray.conftest import Run
from tests.ray.faults import ROOT, SMALL
from tests.ray.test_moments import Moment
from tests.ray.test_pipeline import hf_logprobs

STEPS, EVERY = 6, 2
SETS = {"heldout": 8, "harder": 4}  # prompts, of `SMALL`
STALE = (
    "rollout.max_staleness=1",
    f"trainer.steps={STEPS}",
    f"trainer.evaluate_every={EVERY}",
    f"trainer.checkpoint_every={EVERY}",
)


def check_responses(run: Run, name: str, step: int) -> None:
    """Every response is there once, and its log-probs are those of the weights after `step` steps."""
    rows = evaluation_ledger.read(run.dir, name, step).to_pylist()
    places = Counter((row["prompt_id"], row["sample"]) for row in rows)
    assert len(places) == 2 * SETS[name] and set(places.values()) == {1}
    assert {row["policy_version"] for row in rows} == {step}
    folder = run.dir / f"checkpoints/step-{step}/hf" if step else ROOT / "examples/tiny/base"
    for row in rows[:3]:
        expected = hf_logprobs(folder, row, 1.0)
        torch.testing.assert_close(torch.tensor(row["logprobs"]), expected, atol=1e-4, rtol=0)


def check_order(run: Run, step: int) -> None:
    """The learners waited for the evaluation behind the update and before the publication."""
    lines = read_json_lines(run.dir / "timeline/rank-0000.jsonl")
    phases = {name: span for x in lines if x["step"] == step for name, span in x["phases"].items()}
    order = (
        "rollout wait",
        "held-out loss",
        "update",
        "evaluation",
        "publish",
        "evaluation record",
        "record",
    )
    times = [moment for name in order for moment in phases[name]]
    assert times == sorted(times)
    record = run.metrics[step]
    spans = {name: end - start for name, (start, end) in phases.items()}
    steps = ("rollout wait", "update", "publish", "record")
    assert record["time/step"] == pytest.approx(sum(spans[name] for name in steps), abs=1e-3)
    evaluation = ("held-out loss", "evaluation", "evaluation record")
    assert record["time/evaluation"] == pytest.approx(sum(spans[name] for name in evaluation), abs=1e-3)


@pytest.mark.full
def test_a_learner_dies_while_it_waits_for_an_evaluation(tmp_path):
    """In step 2: the update is done, and nothing of the evaluation is taken."""
    function = "srft_ray.train.evaluations:Evaluations._take"  # called in each step
    moment = Moment(tmp_path, function, 3, "wait", *SMALL, *STALE)
    learner = moment.wait()
    before = Run(moment.run.run_dir)
    assert len(before.metrics) == EVERY and {record["step"] for record in before.evaluations} == {0}
    os.kill(learner, signal.SIGKILL)
    code, _, error = moment.run.finish()
    assert code == 0 and not moment.run.left(), error
    run = Run(moment.run.run_dir)
    run.check_exactly_once(STEPS, 4)
    assert run.evaluations[: len(before.evaluations)] == before.evaluations
    steps = range(0, STEPS + 1, EVERY)
    assert [(r["step"], r["set"]) for r in run.evaluations] == [
        (step, name) for step in steps for name in SETS
    ]
    for record in run.evaluations:
        check_responses(run, record["set"], record["step"])
    for step in range(0, STEPS, EVERY):
        check_order(run, step)
    assert all((record["time/evaluation"] > 0) == (record["step"] % EVERY == 0) for record in run.metrics)
    assert all(row["step"] - row["policy_version"] in (0, 1) for row in run.rollouts)
    assert any(row["step"] > row["policy_version"] for row in run.rollouts)
