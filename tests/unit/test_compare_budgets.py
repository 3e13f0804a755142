"""Equal budgets, learning rates chosen on seeds of their own, and intervals over seeds and prompts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from algorithms import Completion, Group
from srft_ray.commands import cli, side_by_side, variants
from srft_ray.commands.compare import compare
from srft_ray.commands.compare_budget import Reached, budget_table, curve, within
from srft_ray.commands.compare_significance import differences, sentences
from srft_ray.commands.compare_tuning import Sweep, Tried, best_rates, tuning_table
from srft_ray.config.load import make_config, to_yaml
from srft_ray.config.resolve import Resolved
from srft_ray.config.schema import Config
from srft_ray.errors import UserError
from srft_ray.observe import evaluation_ledger
from srft_ray.observe.cost import step_cost, teraflops
from srft_ray.observe.stats import crossed, over_seeds
from srft_ray.run.result import Result
from tests.conftest import base_config


def test_the_formula_of_operations():
    assert teraflops(10**9, trained=1000, generated=2000) == pytest.approx(6 + 4)
    record = {"tokens": 1000.0, "tokens/generated": 2000.0}
    assert step_cost(record, 10**9) == {"operations": pytest.approx(10.0)}


def write_run(folder: Path, tokens: list[int], averages: dict[int, float]) -> Path:
    folder.mkdir(parents=True)
    metrics = [{"step": step, "tokens": count, "tokens/generated": 0} for step, count in enumerate(tokens)]
    evaluations = [{"step": step, "set": "held", "avg": value} for step, value in averages.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in metrics))
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in evaluations))
    return folder


def test_methods_stand_where_the_same_budget_was_spent(tmp_path: Path):
    """A parameter and a token trained on are 6 operations, so 10^12 / 6 parameters make a token 1 TFLOP."""
    cheap = write_run(tmp_path / "cheap", [1, 1, 1, 1], {0: 10.0, 2: 20.0, 4: 30.0})
    dear = write_run(tmp_path / "dear", [2, 2, 2, 2], {0: 10.0, 2: 40.0, 4: 60.0})
    parameters = 10**12 // 6
    curves = {"cheap": [curve([cheap], parameters)], "dear": [curve([dear], parameters)]}
    text = budget_table(curves)
    assert text.splitlines()[2:] == ["| 4 | cheap | 4 | 30.0 ± 0.0 |", "| 4 | dear | 2 | 40.0 ± 0.0 |"]
    wide = budget_table(curves, [2.5, 8.0])
    assert [line.split("|")[3].strip() for line in wide.splitlines()[2:]] == ["2", "0", "4", "4"]
    assert budget_table({"none": [curve([write_run(tmp_path / "none", [1], {})], parameters)]}) == ""
    with pytest.raises(UserError, match="--tflops must be positive"):
        budget_table(curves, [0.0])


def test_an_early_stopped_run_stands_with_its_model_and_what_goes_on_from_it_with_both_costs(tmp_path: Path):
    """The first run stopped after step 4 and chose step 2; the second begins with that model."""
    first = write_run(tmp_path / "first", [1, 1, 1, 1], {0: 10.0, 2: 40.0, 4: 30.0})
    (first / "summary.json").write_text(json.dumps({"steps": 4, "model_step": 2}))
    second = write_run(tmp_path / "second", [2, 2], {0: 40.0, 2: 60.0})
    parameters = 10**12 // 6
    found = curve([first], parameters)
    assert [(one.step, round(one.teraflops), one.averages["held"]) for one in found] == [
        (0, 0, 10.0),
        (2, 2, 40.0),
        (4, 4, 40.0),
    ]
    chained = curve([first, second], parameters)
    assert [(one.step, round(one.teraflops), one.averages["held"]) for one in chained[3:]] == [
        (4, 4, 40.0),
        (6, 8, 60.0),
    ]


def test_a_budget_that_an_evaluation_meets_exactly_counts():
    points = [Reached(0, 0.0, {}), Reached(1, 0.1 + 0.2, {}), Reached(2, 0.5, {})]
    assert within(points, 0.3).step == 1


def test_the_best_rate_is_that_of_the_best_mean_and_the_smaller_one_of_equal_ones():
    tried = [
        Tried("a", 3e-4, (50.0, 60.0)),
        Tried("a", 1e-4, (40.0, 70.0)),
        Tried("a", 1e-3, (0.0, 90.0)),
        Tried("b", 1e-4, (1.0, 1.0)),
        Tried("b", 3e-4, (2.0, 1.0)),
        Tried("b", 1e-3, (1.0, 1.0)),
    ]
    assert best_rates(tried) == {"a": 1e-4, "b": 3e-4}
    assert "| b | **1.5** | 1.0 | 1.0 |" in tuning_table(tried)
    assert tuning_table([]) == ""


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (Sweep([], [9]), "--learning-rates needs at least one value"),
        (Sweep([0.0], [9]), "--learning-rates must be positive"),
        (Sweep([1e-3], []), "--tuning-seeds needs at least one seed"),
        (Sweep([1e-3], [9, 1]), "Seed 1 is a tuning seed and a reported one"),
    ],
)
def test_a_sweep_that_says_nothing_is_refused(sweep: Sweep, message: str):
    with pytest.raises(UserError, match=message):
        sweep.check([0, 1])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, float]]:
    """Replaces training: the nearer the learning rate to 3e-4, the better. Returns what was trained."""
    calls: list[tuple[str, int, float]] = []

    def fit(run: Resolved) -> Result:
        config = run.config
        calls.append((config.run.name, config.run.seed, config.learner.lr))
        steps = config.trainer.steps
        average = 50.0 - abs(np.log10(config.learner.lr / 3e-4))
        evaluations = [
            {"set": "heldout", "step": step, "samples": 8, "avg": value, "entropy": 0.5}
            for step, value in ((0, 10.0), (steps, average))
        ]
        summary = {
            "tokens_generated": 1000,
            "tokens": 2000,
            "steps": config.trainer.steps,
            "evaluations": evaluations,
        }
        config.run_dir.mkdir(parents=True)
        (config.run_dir / "summary.json").write_text(json.dumps(summary))
        (config.run_dir / "metrics.jsonl").write_text('{"step": 0, "time/step": 0.5}\n')
        (config.run_dir / "config.yaml").write_text(to_yaml(config))
        return Result(config.run_dir, steps, "", summary, "")

    monkeypatch.setattr(variants, "fit_series", lambda runs: [fit(run) for run in runs])
    monkeypatch.setattr(side_by_side, "start_ray", lambda *_: False)
    return calls


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> Config:
    return make_config(base_config(tmp_path, tiny_model, evaluation={"data": {"heldout": {}}}))


def test_every_method_is_tuned_before_fresh_seeds_are_reported(
    config: Config, trained: list[tuple[str, int, float]]
):
    sweep = Sweep([1e-5, 3e-4, 1e-2], [100, 101])
    text = compare(config, ["srft", "sft"], [0, 1], sweep=sweep)
    tuning = trained[:12]
    assert {(seed, rate) for _, seed, rate in tuning} == {(s, r) for s in (100, 101) for r in sweep.rates}
    assert tuning[0][0] == "srft-lr1e-05-seed100" and len({name for name, _, _ in tuning}) == 12
    assert trained[12:] == [
        ("srft-seed0", 0, 3e-4),
        ("sft-seed0", 0, 3e-4),
        ("srft-seed1", 1, 3e-4),
        ("sft-seed1", 1, 3e-4),
    ]
    assert "| srft | 48.5 | **50.0** | 48.5 |" in text
    assert "algorithm (2 seeds)" in text, "tuning seeds are not reported"
    assert compare(config, ["srft", "sft"], [0, 1], sweep=sweep) == text and len(trained) == 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning-rates", "fast"], "--learning-rates fast are not numbers"),
        (["--learning-rates", "1e-3", "--tuning-seeds", "0"], "Seed 0 is a tuning seed"),
        (["--tflops", "many"], "--tflops many are not numbers"),
    ],
)
def test_wrong_options_are_refused(
    words: list[str], message: str, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert cli.main(["compare", str(file), "--algorithms", "sft", "--seeds", "0", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_size_of_the_test_over_seeds_and_prompts():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(300):
        values = rng.normal(0, 0.1, (3, 1)) + rng.normal(0, 0.2, (1, 20)) + rng.normal(0, 0.2, (3, 20))
        found.append(crossed(values).p < 0.05)
    assert 0.015 < np.mean(found) < 0.09


def simulate(seeds: int, prompts: int, by_seed: float, by_prompt: float, by_both: float) -> float:
    """How often the interval covers the true mean 0, in 300 experiments."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        values = rng.normal(0, by_seed, (seeds, 1)) + rng.normal(0, by_prompt, (1, prompts))
        values = values + rng.normal(0, by_both, (seeds, prompts))
        low, high = crossed(values).interval
        hits += low <= 0 <= high
    return hits / 300


@pytest.mark.parametrize(
    "spread",
    [
        (0.05, 0.2, 0.2),
        *(
            pytest.param(s, marks=pytest.mark.full)
            for s in [(0.0, 0.3, 0.3), (0.1, 0.0, 0.3), (0.0, 0.0, 0.3)]
        ),
    ],
)
def test_the_interval_over_seeds_and_prompts_covers(spread: tuple[float, float, float]):
    assert 0.91 < simulate(3, 20, *spread) < 0.995


def test_an_interval_over_seeds_alone_does_not_cover_new_prompts():
    """What the other interval is for: the same prompts for all seeds, which differ much."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        values = rng.normal(0, 0.3, (1, 60)) + rng.normal(0, 0.1, (3, 60))
        low, high = over_seeds(list(values)).interval
        hits += low <= 0 <= high
    assert hits / 100 < 0.8


def test_intervals_without_spread_or_seeds():
    same = crossed(np.full((3, 4), 0.25))
    assert same.interval == (0.25, 0.25) and 0 < same.p < 0.01
    # Equal means of seeds and of prompts are no proof: one prompt more is right in each of two seeds.
    for by_seed in (np.eye(2), np.eye(2, 30)):
        assert crossed(by_seed).p > 0.1 and over_seeds(list(by_seed)).p > 0.1
    assert over_seeds([np.ones(30), np.ones(30)]).p < 0.001
    single = crossed(np.zeros((1, 4)))
    assert np.isnan(single.interval).all() and single.p == 1.0


def write_table(folder: Path, rewards: list[float], texts: list[str]) -> Path:
    groups = [
        Group(
            2, number, text, [1], "r", {}, [Completion(0, "rollout", "t", [1], [0.0], reward=reward)], "held"
        )
        for number, (reward, text) in enumerate(zip(rewards, texts, strict=True))
    ]
    evaluation_ledger.write_part(folder, "held", 2, 0, groups)
    evaluation_ledger.join(folder, "held", 2, [0])
    return folder


def test_prompts_are_crossed_with_seeds_only_if_seeds_share_them(tmp_path: Path):
    rewards: dict[str, list[list[float]]] = {
        "old": [[0, 0, 0, 0], [0, 0, 0, 0]],
        "new": [[1, 1, 0, 0], [1, 0, 0, 0]],
    }

    def rows(name: str, texts: list[list[str]]) -> dict[str, Any]:
        runs = {
            label: {
                seed: write_table(tmp_path / name / f"{label}{seed}", found, texts[seed])
                for seed, found in enumerate(by_seed)
            }
            for label, by_seed in rewards.items()
        }
        (row,) = differences(runs)
        return row

    shared = rows("shared", [list("abcd"), list("abcd")])
    own = rows("own", [list("abcd"), list("efgh")])
    values = np.array(rewards["new"]) - np.array(rewards["old"])
    expected = crossed(values.astype(float))
    assert (shared["low over prompts"], shared["high over prompts"]) == expected.interval
    assert shared["p over prompts"] == shared["holm over prompts"] == expected.p != shared["p"]
    assert own["p over prompts"] == own["p"]
    assert (own["low over prompts"], own["high over prompts"]) == (own["low"], own["high"])
    assert shared["low"] == own["low"] and "over prompts too" in sentences([shared])
