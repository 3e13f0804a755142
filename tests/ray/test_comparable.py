"""Runs that can be compared: bitwise repeatable, the same prompts, seeds and evaluation for every algorithm,
stages like runs."""

import math
from pathlib import Path

import pytest
from safetensors.torch import load_file

from algorithms import REGISTRY
from srft_ray import fit, make_config
from srft_ray.rollout.credit import REFILL_DISTANCE
from tests.ray.conftest import Run, what

pytestmark = pytest.mark.usefixtures("local_ray")
BASE = Path(__file__).resolve().parents[2] / "examples" / "tiny" / "base"


def train(folder: Path, name: str, algorithm: dict, **sections: dict) -> Run:
    values = {
        "run": {"name": name, "dir": str(folder), "device": "cpu", "seed": 3},
        "model": {"path": str(BASE), "max_length": 256},
        "data": {"format": "tasks", "path": "sums+products", "size": 256},
        "algorithm": algorithm,
        "rollout": {"num_rollouts": 4, "max_new_tokens": 64},
        "learner": {"lr": 2e-4, "zero_stage": 0, "micro_batch_tokens": 2048},
        "trainer": {"steps": 3, "groups_per_step": 4, "max_failures": 0, "evaluate_every": 3},
        "evaluation": {"samples": 2, "data": {"held": {"split": "heldout", "size": 8}}},
    }
    for section, keys in sections.items():
        values[section] = {**values.get(section, {}), **keys}
    return Run(fit(make_config(values)).run_dir)


def without_times(records: list[dict]) -> list[dict]:
    return [what(record) for record in records]


def weights(run: Run) -> dict:
    step = max(int(folder.name.removeprefix("step-")) for folder in (run.dir / "checkpoints").glob("step-*"))
    return load_file(run.dir / "checkpoints" / f"step-{step}" / "hf" / "model.safetensors")


def largest_difference(one: Run, other: Run) -> float:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def prompts(run: Run) -> set[tuple]:
    return {(row["step"], row["group_id"], row["prompt"]) for row in run.ledger}


@pytest.fixture(scope="module")
def srft(local_ray, tmp_path_factory):
    return train(tmp_path_factory.mktemp("srft"), "srft", {"name": "srft"})


def test_two_runs_are_bitwise_equal(tmp_path, srft):
    again = train(tmp_path, "again", {"name": "srft"})
    assert without_times(again.metrics) == without_times(srft.metrics) and len(srft.metrics) == 3
    assert again.evaluations == srft.evaluations
    by_key = [
        sorted(run.ledger, key=lambda row: (row["step"], row["group_id"], row["sample"]))
        for run in (srft, again)
    ]
    assert by_key[0] == by_key[1]
    assert largest_difference(again, srft) == 0.0
    assert any(record["reward/mean"] not in (0.0, 1.0) for record in srft.metrics)


def check_same_data(run: Run, other: Run) -> None:
    """The same prompts in the same places, the same seeds, and at the beginning the same rollouts and the
    same evaluation."""
    kept = [row for row in run.ledger if row["attempt"] == 0]
    assert {(row["step"], row["group_id"], row["prompt"]) for row in kept} <= prompts(other)
    seeds = {(row["step"], row["group_id"], row["sample"]): row["seed"] for row in other.rollouts}
    assert all(
        seeds[row["step"], row["group_id"], row["sample"]] == row["seed"]
        for row in kept
        if row["origin"] == "rollout"
    )
    first = {(row["group_id"], row["sample"]): row["response"] for row in other.rollouts if row["step"] == 0}
    assert all(
        first[row["group_id"], row["sample"]] == row["response"]
        for row in kept
        if row["origin"] == "rollout" and row["step"] == 0 and not row["prefix"]
    )
    assert run.evaluations[0] == other.evaluations[0]
    assert [(e["step"], e["set"], e["prompts"], e["samples"]) for e in run.evaluations] == [
        (e["step"], e["set"], e["prompts"], e["samples"]) for e in other.evaluations
    ]


@pytest.mark.full
def test_dapo_refills_groups_without_signal(tmp_path, srft):
    run = train(tmp_path, "dapo", {"name": "dapo"}, learner={"mini_batches": 2})
    check_same_data(run, srft)
    refilled = [row for row in run.ledger if row["attempt"] > 0]
    groups = {(row["step"], row["group_id"]): row["attempt"] for row in run.ledger}
    assert sum(groups.values()) == sum(record["groups/discarded"] for record in run.metrics) > 0
    assert len(groups) == 12 and all(row["group_id"] >= REFILL_DISTANCE for row in refilled)
    for place in groups:
        verdicts = {row["reward"] > 0.5 for row in run.ledger if (row["step"], row["group_id"]) == place}
        assert verdicts == {True, False}, "a group without signal was trained on before the limit"
    assert all(
        record["tokens/generated"] > record["tokens"] for record in run.metrics if record["groups/discarded"]
    )
    assert all(0.5 < record["ratio/mean"] < 2 and record["ratio/kl_old"] >= 0 for record in run.metrics)


@pytest.mark.full
def test_a_method_from_a_file_sees_the_same_data(tmp_path, srft):
    """examples/custom_algorithm.py as a user names it in YAML."""
    run = train(
        tmp_path, "custom", {"path": str(BASE.parents[1] / "custom_algorithm.py:Confident"), "ceiling": 0.7}
    )
    check_same_data(run, srft)
    assert {"loss/policy", "loss/sft_demo"} <= run.metrics[0].keys() and 0 < run.metrics[0][
        "weight/sft_demo"
    ] < 1


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(set(REGISTRY) - {"srft", "dapo"}))
def test_every_algorithm_runs_on_the_same_data(tmp_path, srft, name):
    settings = {
        "two_stage": {"first_steps": 0},
        "sft_then_dpo": {"first_steps": 0},
        "sft_then_rl": {"first_steps": 0, "second_schedule": {"groups_per_step": 4, "mini_batches": 2}},
    }.get(name, {})
    run = train(tmp_path, name, {"name": name, **settings}, learner={"mini_batches": 2})
    assert all(math.isfinite(value) for record in run.metrics for value in record.values())
    check_same_data(run, srft)
    if name != "iw_sft" and run.rollouts:
        assert all(0.2 < record["ratio/mean"] < 5 and record["ratio/kl_old"] >= 0 for record in run.metrics)


@pytest.mark.full
def test_one_and_two_learners_agree_after_ten_steps(tmp_path):
    runs = [
        train(
            tmp_path,
            f"learners{n}",
            {"name": "srft"},
            learner={"num_workers": n, "zero_stage": n},
            trainer={"steps": 10, "evaluate_every": 10},
        )
        for n in (1, 2)
    ]
    found = largest_difference(*runs)
    print(f"largest difference of a parameter after 10 steps with 1 and 2 learners: {found:.1e}")
    assert found <= 1e-4


@pytest.mark.full
def test_two_stages_equal_two_runs(tmp_path):
    """SFT then GRPO in one run equals an SFT run and a GRPO run that starts from its model where its prompts
    ended."""
    both = train(
        tmp_path, "both", {"name": "two_stage", "first_steps": 3}, trainer={"steps": 6, "evaluate_every": 0}
    )
    first = train(tmp_path, "first", {"name": "sft"}, trainer={"evaluate_every": 0})
    second = train(
        tmp_path,
        "second",
        {"name": "grpo"},
        model={"path": str(first.dir / "checkpoints/step-3/hf")},
        trainer={"evaluate_every": 0, "first_group": 12},
    )
    assert [r["response"] for r in sorted(second.rollouts, key=key)] == [
        r["response"] for r in sorted(both.rollouts, key=key)
    ]
    found = largest_difference(both, second)
    print(f"largest difference of a parameter between two stages and two runs: {found:.1e}")
    assert found <= 1e-6


def key(row: dict) -> tuple:
    return row["step"], row["group_id"], row["sample"]
