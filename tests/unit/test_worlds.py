"""The worlds that tell methods apart: their tasks, data, gates and tables. Nothing is trained."""

import dataclasses
import json
import random
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from srft_ray.commands.compare_runs import planned_runs
from srft_ray.commands.compare_variants import read_variants
from srft_ray.config.load import load_config
from srft_ray.config.schema import Config
from srft_ray.errors import RunFailed

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "worlds"))

import gates  # noqa: E402
import make_base  # noqa: E402
import run  # noqa: E402
import strings  # noqa: E402
import tables  # noqa: E402
import write_data  # noqa: E402
from judge import judge  # noqa: E402


def problems(band: str, number: int = 50) -> list[strings.Problem]:
    return list(islice(strings.distinct(band, random.Random(band), set()), number))


def test_a_chain_by_hand():
    problem = strings.chain("qtw", "beaf")
    assert problem.states == ("faeb", "afeb", "bafc") and problem.answer == "bafc"
    assert strings.worked(problem.operations, problem.states) == "qfaeb tafeb wbafc =bafc"
    assert strings.chain("yz", "abcd").states == ("aaad", "addd")
    assert [strings.OPERATIONS[name]("abcd") for name in "rsuvx"] == ["bcda", "dabc", "abdc", "dbca", "aabc"]


def test_a_sum_by_hand():
    problem = strings.draw_sum(random.Random(0))
    first, second = problem.prompt.split("+")
    sums = [(ord(a) + ord(b) - 2 * ord("a")) % 6 for a, b in zip(first, second, strict=True)]
    assert problem.answer == "".join("abcdef"[place] for place in sums)


@pytest.mark.parametrize("band", strings.BANDS)
def test_a_band_has_its_depths_and_operations(band: str):
    given = strings.BANDS[band]
    for problem in problems(band):
        missing = [name for name in problem.operations if name in strings.MISSING]
        assert len(problem.operations) in given.depths
        assert len(missing) == given.missing
        assert judge(strings.worked(problem.operations, problem.states), problem.answer).verdict == "match"


def test_a_wrong_step_makes_the_answer_wrong():
    rng = random.Random(0)
    for problem in problems("edge", 200):
        text = strings.with_wrong_step(problem, rng)
        assert judge(text, problem.answer).verdict == "mismatch"
        right = strings.worked(problem.operations, problem.states).split()
        wrong = [step for step, known in zip(text.split(), right, strict=True) if step != known]
        assert len(wrong) >= 2, "one step, what follows from it, and the answer"


def test_no_guess_is_right_by_chance():
    rng = random.Random(0)
    assert {judge(strings.guess(rng), "abcd").verdict for _ in range(50)} == {"no_answer"}


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("qabcd =abcd", "match"),
        ("=abcd", "match"),
        ("=abcf", "mismatch"),
        ("=abcd =dcba", "mismatch"),
        ("=abcde", "no_answer"),
        ("abcd", "no_answer"),
        ("=abcd x", "no_answer"),
        ("", "no_answer"),
    ],
)
def test_the_verdict_on_a_response(response: str, verdict: str):
    found = judge(response, "abcd")
    assert found.verdict == verdict and found.reward == float(verdict == "match")


def test_the_base_model_never_reads_what_training_is_to_teach():
    rng = random.Random(0)
    texts = [make_base.text(rng, make_base.WORKED_SHARE) for _ in range(3000)]
    operations = [prompt.partition(":")[0] for prompt, _ in texts if ":" in prompt]
    assert not set("".join(operations)) & set(strings.MISSING)
    assert max(map(len, operations)) < min(strings.BANDS["longer"].depths)
    # Longer chains than one are worked in a fifth of the texts, and guessed in the others.
    deep = [response for prompt, response in texts if prompt.find(":") > 1]
    assert 0.15 < np.mean([" " in response for response in deep]) < 0.25


def test_the_tokenizer_reads_characters():
    tokenizer = make_base.make_tokenizer()
    text = "qt:beaf\nqfaeb tafeb =afeb"
    assert tokenizer(text).input_ids == make_base.encode(text)
    assert tokenizer.decode(make_base.encode(text)) == text


def test_the_data_have_few_demonstrations_and_a_quarter_of_them_is_wrong(tmp_path: Path):
    write_data.write(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    shown = {row["prompt"]: row for row in rows if "demonstration" in row}
    wrong = [row for row in shown.values() if judge(row["demonstration"], row["answer"]).reward == 0.0]
    assert len(shown) == 96 and len(wrong) == 24
    assert Counter(row["metadata"]["band"] for row in wrong) == {"habit": 6, "edge": 6, "missing": 12}
    assert sum("demonstration" in row for row in rows) == len(rows) / 2
    trained = {row["prompt"] for row in rows}
    for band in strings.ALL_BANDS:
        asked = [json.loads(line)["prompt"] for line in (tmp_path / f"{band}.jsonl").read_text().splitlines()]
        assert len(set(asked)) == len(asked) == write_data.EVALUATION_PROMPTS
        assert not trained & set(asked)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    write_data.write(tmp_path)
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}, "nothing is repeated"


# Of each gate a number of right samples a prompt that passes, and those that do not.
COUNTS = {
    "habit": ([3], [[0], [15]]),
    "edge": ([1, 2], [[0], [20], [0, 0, 0, 9]]),
    "missing": ([0], [[1]]),
    "longer": ([0], [[1, 1, 1, 0]]),
    "retained": ([8], [[0], [7, 7, 0, 7]]),
}


@pytest.mark.parametrize("band", gates.GATES)
def test_a_gate_rejects_what_cannot_tell_methods_apart(band: str):
    gate = gates.GATES[band]
    good, bad = COUNTS[band]
    assert gates.find(band, gate, np.array(good)).passed
    for counts in bad:
        finding = gates.find(band, gate, np.array(counts))
        assert not finding.passed
        assert f"**failed**: {gate.why}" in gates.table([finding])


def test_a_world_whose_base_fails_is_not_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    passing = [gates.find(band, gate, np.array(COUNTS[band][0])) for band, gate in gates.GATES.items()]
    monkeypatch.setattr(run, "measure", lambda path: passing)
    assert run.check_base() == passing
    failing = [*passing[1:], dataclasses.replace(passing[0], pass_1=0.9)]
    monkeypatch.setattr(run, "measure", lambda path: failing)
    monkeypatch.setattr(run, "compare", lambda *arguments, **options: pytest.fail("a run was started"))
    monkeypatch.setattr(sys, "argv", ["run.py", "--worlds", "strings"])
    monkeypatch.chdir(ROOT)
    assert run.main() == 1
    assert "rejected, because its base model fails at habit" in capsys.readouterr().err


def test_the_shipped_base_is_small():
    assert sum(file.stat().st_size for file in (ROOT / "examples/worlds/base").iterdir()) < 4e6


@pytest.mark.parametrize("name", run.ALL)
def test_every_run_of_a_world_is_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    world = run.ALL[name]
    config = load_config(world.config, [*world.overrides, f"run.dir={tmp_path}"])
    planned = planned_runs(config, [], [0, 1, 2], read_variants(world.variants))
    methods = {comparison.label for comparison in planned}
    assert {"sft", "grpo", "srft"} <= methods and len(planned) == 3 * len(methods)
    if name == "strings":
        assert tuple(config.evaluation.data) == strings.ALL_BANDS
        generated = max(strings.BANDS["longer"].depths) * 6 + 6
        assert generated <= config.rollout.max_new_tokens


OUTCOMES = [
    {"algorithm": name, "seed": seed, "figures": {"edge avg@8, %": value + seed, "entropy, nats": 0.1}}
    for seed in (0, 1)
    for name, value in (("(before)", 10.0), ("sft", 40.0))
]
WIDE = "holm over prompts"
EDGE = {"against": "sft", "set": "edge", "seeds": 2}
DIFFERENCES = [
    {"method": "srft", **EDGE, "mean": 0.1, "low": 0.05, "high": 0.15, "holm": 0.01, WIDE: 0.3},
    {"method": "grpo", **EDGE, "mean": -0.1, "low": -0.3, "high": 0.1, "holm": 0.4, WIDE: 0.01},
]


def test_the_tables_of_a_world():
    text = tables.world_text("strings", OUTCOMES, DIFFERENCES, "GATES")
    assert "GATES" in text and "over 2 seeds" in text and "Holm over 2 tests" in text
    # Student's 97.5 % quantile with one degree of freedom is 12.7; the deviation of 40 and 41 is 0.707.
    assert "| sft | 40.5 ± 6.4 |" in text and "| (before) | 10.5 ± 6.4 |" in text
    assert "| srft | **+10.0 [+5.0, +15.0]** |" in text
    assert "| grpo | -10.0 [-30.0, +10.0] \\* |" in text
    assert "nats" not in text


def test_one_seed_is_not_said_to_show_other_seeds():
    one = [{**row, "seeds": 1, WIDE: row["holm"]} for row in DIFFERENCES]
    text = tables.world_text("strings", [row for row in OUTCOMES if row["seed"] == 0], one)
    assert "| sft | 40.0 |" in text and "| srft | **+10.0 [+5.0, +15.0]** |" in text
    assert "over seeds" not in text and "over prompts" in text and "\\*" not in text


def test_a_page_is_published_between_its_marks():
    page = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter"
    assert tables.published(page, "new") == f"before\n{tables.BEGIN}\nnew\n{tables.END}\nafter"
    with pytest.raises(ValueError, match="has no"):
        tables.published("before", "new")
    assert tables.published(run.PAGE.read_text(), "new") != run.PAGE.read_text()


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces gates and training; a comparison is interrupted once. Returns the comparisons that began."""
    began: list[str] = []

    def compare(config: Config, algorithms: list, seeds: list[int], variants: dict, parallel: int) -> None:
        began.append(config.run.name)
        assert parallel == 3 and algorithms == [] and seeds == [0, 1] and "srft" in variants
        if began == ["strings"]:
            raise RunFailed("stopped by SIGTERM")
        folder = Path(config.run.dir) / f"{config.run.name}-compare"
        folder.mkdir(parents=True)
        (folder / "compare.json").write_text(json.dumps(OUTCOMES))
        (folder / "differences.json").write_text(json.dumps(DIFFERENCES))

    passing = [gates.find(band, gate, np.array(COUNTS[band][0])) for band, gate in gates.GATES.items()]
    monkeypatch.setattr(run, "measure", lambda path: passing)
    monkeypatch.setattr(run, "compare", compare)
    monkeypatch.setattr(run, "load_config", lambda path, words: in_runs(load_config(path, words), tmp_path))
    monkeypatch.setattr(run, "RUNS", tmp_path)
    for name in ("PAGE", "README"):
        copy = tmp_path / f"{name}.md"
        copy.write_text(getattr(run, name).read_text())
        monkeypatch.setattr(run, name, copy)
    monkeypatch.setattr(sys, "argv", ["run.py", "--seeds", "0,1", "--parallel", "3", "--publish"])
    monkeypatch.chdir(ROOT)
    return began


def in_runs(config: Config, folder: Path) -> Config:
    config.run.dir = str(folder)
    return config


def shown_in(page: Path) -> str:
    return page.read_text().split(tables.BEGIN)[1].split(tables.END)[0]


def test_the_same_command_continues_and_ends_with_the_tables(trained: list[str], tmp_path: Path):
    before = shown_in(run.README)
    assert run.main() == 1 and shown_in(run.README) == before
    assert run.main() == 0
    assert trained == ["strings", "strings", "control"]
    for page in (run.PAGE, run.README):
        assert "| sft | 40.5 ± 6.4 |" in shown_in(page)
    assert "### control" in run.PAGE.read_text() and "**+10.0" in (tmp_path / "worlds.md").read_text()


@pytest.mark.full
def test_the_shipped_base_passes_its_gates():
    assert all(finding.passed for finding in gates.measure(ROOT / "examples/worlds/base"))
