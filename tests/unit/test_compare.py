"""`compare` without a run: labels and directories, names and instances, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from algorithms import GRPO, SFT, SRFT, Algorithm, Completion, Group
from srft_ray.commands import side_by_side, variants
from srft_ray.commands.compare import compare
from srft_ray.commands.compare_runs import labels, planned_runs
from srft_ray.commands.compare_significance import differences, sentences
from srft_ray.commands.compare_tuning import Sweep
from srft_ray.commands.compare_variants import read_variants
from srft_ray.config.load import make_config, to_yaml
from srft_ray.config.resolve import Resolved
from srft_ray.errors import RunFailed, UserError
from srft_ray.observe import evaluation_ledger
from srft_ray.observe.page_comparisons import steps_of_model
from srft_ray.observe.report import evaluations_of_model
from srft_ray.run.result import Result
from tests.conftest import base_config

SECTIONS = {"evaluation": {"data": {"heldout": {}}}, "algorithm": {"name": "srft", "sft_scale": 0.125}}


@pytest.fixture
def values(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    return base_config(tmp_path, tiny_model, **SECTIONS)


@dataclasses.dataclass(frozen=True)
class Own(GRPO):
    """A user's own method."""

    name = "own"


def test_labels_are_names_and_then_numbered():
    first, second, third = SRFT(), SRFT(), SRFT(sft_scale=0.25)
    found = labels(["srft", "sft", first, "srft", Own(), second, third])
    assert found == {
        "srft": "srft",
        "sft": "sft",
        "srft-2": first,
        "own": Own(),
        "srft-3": second,
        "srft-4": third,
    }
    assert list(labels([first, "srft"])) == ["srft", "srft-2"], "the order of the list decides"
    assert list(labels([third])) == ["srft"]


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        (SRFT, r"instances of algorithms, not classes: pass SRFT\(\)"),
        (3, "names and instances of algorithms.Algorithm, not 3"),
        (Algorithm(), "Algorithm has no name"),
        (type("Slashed", (GRPO,), {"name": "a/b"})(), "Slashed has no name that can be part"),
    ],
)
def test_what_is_no_algorithm_is_refused(entry: Any, wanted: str):
    with pytest.raises(UserError, match=wanted):
        labels([entry])


def test_every_algorithm_runs_with_every_seed(values: dict[str, Any]):
    config = make_config(values)
    before = to_yaml(config)
    instance = SRFT(sft_scale=0.25)
    planned = planned_runs(config, ["srft", "sft", instance], [3, 4, 3])
    runs = [comparison.run for comparison in planned]
    assert [run.config.run.name for run in runs] == [
        f"{label}-seed{seed}" for seed in (3, 4) for label in ("srft", "sft", "srft-2")
    ]
    assert {run.config.run.dir for run in runs} == {f"{config.run.dir}/run-compare"}
    assert [run.config.run.seed for run in runs] == [3, 3, 3, 4, 4, 4]
    assert [run.algorithm for run in runs[:3]] == [None, None, instance]
    scales = [(run.config.algorithm["name"], run.config.algorithm.get("sft_scale")) for run in runs[:3]]
    assert scales == [("srft", 0.125), ("sft", None), ("srft", 0.25)], "of the config, the defaults, its own"
    assert all(run.config.trainer.evaluate_every == config.trainer.steps for run in runs)
    assert to_yaml(config) == before


@pytest.mark.parametrize(
    ("algorithms", "seeds", "sections", "wanted"),
    [
        ([], [0], {}, "compare needs at least one algorithm"),
        (["sft"], [], {}, "compare needs at least one seed"),
        (["sft"], [0], {"evaluation": {"data": {}}}, "compare needs evaluation sets"),
        (["sft", "grp"], [0], {}, "did you mean 'grpo'?"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    values: dict[str, Any], algorithms: list[str], seeds: list[int], sections: dict[str, Any], wanted: str
):
    config = make_config(values | sections)
    with pytest.raises(UserError) as caught:
        compare(config, algorithms, seeds)
    assert wanted in str(caught.value)
    assert not Path(config.run.dir).exists()


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Replaces training and Ray. Returns (run name, algorithm's name) of every run that was trained."""
    calls: list[tuple[str, str]] = []

    def fit(run: Resolved) -> Result:
        config = run.config
        calls.append((config.run.name, run.algorithm.name))
        scale = config.algorithm.get("sft_scale", 0.0)
        steps = (0, config.trainer.steps)
        evaluations = [
            {"set": "heldout", "step": step, "samples": 8, "avg": 50.0 + 4 * scale * step, "entropy": 0.5}
            for step in steps
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
        return Result(config.run_dir, config.trainer.steps, "", summary, "")

    monkeypatch.setattr(variants, "fit_series", lambda runs: [fit(run) for run in runs])
    monkeypatch.setattr(side_by_side, "start_ray", lambda *_: False)
    return calls


def test_a_file_and_instances_are_compared_and_finished_runs_are_not_repeated(
    tmp_path: Path, values: dict[str, Any], trained: list[tuple[str, str]]
):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    algorithms = ["srft", SFT(), SRFT(sft_scale=0.25)]
    text = compare(path, algorithms, [0])
    assert trained == [("srft-seed0", "srft"), ("sft-seed0", "sft"), ("srft-2-seed0", "srft")]
    rows = [line.split("|")[1:3] for line in text.splitlines()]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["algorithm (1 seed)", "heldout avg@8, %"],
        ["---", "---"],
        ["(before)", "50.0 ± 0.0"],
        ["srft", "51.0 ± 0.0"],
        ["sft", "50.0 ± 0.0"],
        ["srft-2", "52.0 ± 0.0"],
    ]
    folder = tmp_path / "runs/run-compare"
    assert (folder / "compare.md").read_text() == text + "\n"
    assert [row["algorithm"] for row in json.loads((folder / "compare.json").read_text())][-3:] == [
        "srft",
        "sft",
        "srft-2",
    ]
    assert compare(str(path), algorithms, [0]) == text and len(trained) == 3
    assert compare(make_config(values), algorithms, [0]) == text and len(trained) == 3


def test_another_algorithm_under_the_same_label_is_refused(
    values: dict[str, Any], trained: list[tuple[str, str]]
):
    compare(make_config(values), [SRFT(sft_scale=0.25)], [0])
    with pytest.raises(UserError, match="already holds a different run"):
        compare(make_config(values), [SRFT(sft_scale=0.75)], [0])
    assert len(trained) == 1


def test_instances_do_not_need_the_algorithm_section(values: dict[str, Any], trained: list[tuple[str, str]]):
    config = make_config(values | {"algorithm": {"name": "none"}})
    assert "| grpo |" in compare(config, [GRPO(clip_high=0.28)], [0])
    assert trained == [("grpo-seed0", "grpo")]


def test_a_run_that_is_stopped_ends_the_comparison_with_a_sentence(
    values: dict[str, Any], trained: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
):
    def fit(run: Resolved) -> Result:
        return Result(run.run_dir, 3, "SIGTERM", {}, "")

    monkeypatch.setattr(variants, "fit_series", lambda runs: [fit(run) for run in runs])
    wanted = r"stopped by SIGTERM after step 3 .* the same command continues"
    with pytest.raises(RunFailed, match=wanted):
        compare(make_config(values), ["srft"], [0])


VARIANTS = """
srft: {algorithm: {name: srft}}
slow: {algorithm: {name: srft, sft_scale: 0.25}, learner: {lr: 1.0e-7}, trainer: {steps: 4}}
"""


def test_variants_are_sections_that_differ(values: dict[str, Any], tmp_path: Path):
    (tmp_path / "variants.yaml").write_text(VARIANTS)
    config = make_config(values)
    runs = planned_runs(config, [], [0, 1], read_variants(tmp_path / "variants.yaml"))
    assert [(one.label, one.run.config.run.seed) for one in runs] == [
        ("srft", 0),
        ("slow", 0),
        ("srft", 1),
        ("slow", 1),
    ]
    first, second = (one.run.config for one in runs[:2])
    assert first.algorithm["sft_scale"] == 0.5, "a section takes the place of the config's algorithm"
    assert (second.algorithm["sft_scale"], second.learner.lr, second.trainer.steps) == (0.25, 1e-7, 4)
    assert second.run_dir == first.run_dir.with_name("slow-seed0")
    assert first.run_dir.parent.name == "run-compare" and second.data == first.data
    assert config.learner.lr == 1e-6 and config.algorithm["sft_scale"] == 0.125


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must hold variants by name"),
        ("a: [", "is not valid YAML"),
        ("a/b: {}", "The variant 'a/b' needs a name of letters"),
        ("a: 3", "The variant a must hold sections"),
        ("a: {run: {seed: 3}}", "The variant a changes run, which all variants of a comparison share"),
        ("a: {evaluation: {samples: 3}}", "changes evaluation, which all variants"),
    ],
)
def test_wrong_variants_are_refused(text: str, message: str, tmp_path: Path):
    (tmp_path / "v.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_variants(tmp_path / "v.yaml")


def test_unknown_keys_and_names_that_are_taken_are_refused(values: dict[str, Any]):
    config = make_config(values)
    with pytest.raises(UserError, match="lrr"):
        planned_runs(config, [], [0], {"a": {"learner": {"lrr": 1}}})
    with pytest.raises(UserError, match="The variant sft has the name of an algorithm"):
        planned_runs(config, ["sft"], [0], {"sft": {}})


def test_differences_are_paired_by_seed_and_prompt(tmp_path: Path):
    """Two seeds of three prompts each: the seeds' mean differences are 1/3 and 2/3."""
    rewards = {"old": {0: [0, 0, 1], 1: [0, 0, 0]}, "new": {0: [1, 0, 1], 1: [1, 1, 0]}}
    runs: dict[str, dict[int, Path]] = {}
    for label, by_seed in rewards.items():
        for seed, found in by_seed.items():
            folder = tmp_path / f"{label}-{seed}"
            groups = [
                Group(
                    2,
                    n,
                    "p",
                    [1],
                    "r",
                    {},
                    [Completion(0, "rollout", "t", [1], [0.0], reward=float(r))],
                    "held",
                )
                for n, r in enumerate(found)
            ]
            evaluation_ledger.write_part(folder, "held", 2, 0, groups)
            evaluation_ledger.join(folder, "held", 2, [0])
            runs.setdefault(label, {})[seed] = folder
    (row,) = differences(runs)
    assert (row["method"], row["against"], row["set"], row["seeds"], row["prompts"]) == (
        "new",
        "old",
        "held",
        2,
        6,
    )
    assert row["mean"] == pytest.approx(0.5)
    half = 12.7062 * (1 / 6)  # Student's quantile of one degree of freedom, and the error of the mean
    assert (row["low"], row["high"]) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-3)
    assert row["p"] == row["holm"] == pytest.approx(2 * 0.10242, abs=1e-3)
    assert sentences([row]).startswith("new − old on held: +50.0 [-161.8, +261.8] points, p 0.2048")
    assert sentences([]) == ""


def test_a_variant_with_another_model_is_not_before_the_others(
    values: dict[str, Any], trained: list[tuple[str, str]], tmp_path: Path, tiny_model: Path
):
    """Its row has the operations of its own model; the first row is of the config's model alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    larger = tmp_path / "larger"
    shutil.copytree(tiny_model, larger)
    settings = AutoConfig.from_pretrained(tiny_model, intermediate_size=1024)
    AutoModelForCausalLM.from_config(settings).save_pretrained(larger)
    text = compare(make_config(values), ["sft"], [0], {"larger": {"model": {"path": str(larger)}}})
    outcomes = json.loads((Path(values["run"]["dir"]) / "run-compare/compare.json").read_text())
    assert [one["algorithm"] for one in outcomes] == ["(before)", "sft", "larger"], text
    figures = {one["algorithm"]: one["figures"] for one in outcomes}
    assert figures["larger"]["TFLOPs"] > 1.2 * figures["sft"]["TFLOPs"]


CHAIN = {
    "rl": {"after": "warm", "algorithm": {"name": "grpo"}, "trainer": {"steps": 3}},
    "warm": {"algorithm": {"name": "sft"}},
}


def test_a_variant_begins_with_the_model_of_another(
    values: dict[str, Any], trained: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tiny_model: Path
):
    """It comes after it, with its cost, and is compared where both together had spent as much."""
    models: dict[str, str] = {}
    fit_series = variants.fit_series

    def fit_and_note(run: Resolved) -> Result:
        config = run.config
        models[config.run.name] = config.model.path
        [result] = fit_series([run])
        summary = json.loads((config.run_dir / "summary.json").read_text())
        trained_model = Path(config.run.dir) / f"model-of-{config.run.name}"
        shutil.copytree(tiny_model, trained_model)
        summary["model"] = str(trained_model)
        (config.run_dir / "summary.json").write_text(json.dumps(summary))
        return result

    monkeypatch.setattr(variants, "fit_series", lambda runs: [fit_and_note(run) for run in runs])
    config = make_config(values)
    text = compare(config, [], [0, 1], CHAIN)
    assert [name for name, _ in trained] == ["warm-seed0", "warm-seed1", "rl-seed0", "rl-seed1"]
    folder = f"{config.run.dir}/run-compare"
    assert models["warm-seed1"] == config.model.path
    assert models["rl-seed1"] == f"{folder}/model-of-warm-seed1"
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in text.splitlines() if "±" in line}
    assert list(rows) == ["(before)", "rl", "warm"]
    generated = [rows[name][2].strip() for name in ("warm", "rl")]
    assert generated == ["1,000 ± 0", "2,000 ± 0"], "with what its predecessor cost"
    assert compare(config, [], [0, 1], CHAIN) == text and len(trained) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"a": {"after": "sfft"}},
            "The variant a goes on after sfft, which is not compared: did you mean 'sft'",
        ),
        ({"a": {"after": "b"}, "b": {"after": "a"}}, "The variants a, b go on after each other"),
        ({"a": {"after": "a"}}, "The variants a go on after each other"),
        ({"a": {"after": ["sft"]}}, "give the name of one method"),
        ({"a": {"after": "sft", "model": {"path": "x"}}}, "leave out its model section"),
    ],
)
def test_a_wrong_chain_is_refused(values: dict[str, Any], given: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        planned_runs(make_config(values), ["sft"], [0], given)


def test_a_chain_needs_models_that_can_be_read(values: dict[str, Any]):
    config = make_config(values | {"trainer": {**values["trainer"], "checkpoint_path": "s3://bucket/runs"}})
    with pytest.raises(UserError, match=r"The variant rl goes on from a checkpoint in .*s3://bucket/runs"):
        planned_runs(config, [], [0], CHAIN)


def test_a_chain_is_not_swept(values: dict[str, Any]):
    with pytest.raises(UserError, match="and rl begins with another: leave the sweep out"):
        compare(make_config(values), [], [0], CHAIN, Sweep([1e-4], [9]))


def test_the_model_that_early_stopping_chose_is_compared(tmp_path: Path):
    folder = tmp_path / "run"
    for step, reward in ((2, 1.0), (4, 0.0)):
        rollout = Completion(0, "rollout", "t", [1], [0.0], reward=reward)
        evaluation_ledger.write_part(
            folder, "held", step, 0, [Group(step, 0, "p", [1], "r", {}, [rollout], "held")]
        )
        evaluation_ledger.join(folder, "held", step, [0])
    assert steps_of_model(folder) == {"held": 4}
    (folder / "summary.json").write_text(json.dumps({"steps": 4, "model_step": 2}))
    assert steps_of_model(folder) == {"held": 2}
    records = [{"set": "held", "step": step, "samples": 1, "avg": 9.0 * step} for step in (0, 2, 4)]
    assert evaluations_of_model({"steps": 4, "model_step": 2, "evaluations": records}) == [records[1]]


def test_processes_train_neighbours():
    runs = [f"{method}-{seed}" for seed in range(3) for method in ("srft", "sft", "uft")]
    parts = side_by_side.parts_of(runs, 2)
    assert [*parts[0], *parts[1]] == runs and [len(part) for part in parts] == [4, 5]
    assert side_by_side.parts_of(runs[:2], 4) == [runs[:1], runs[1:2]]
