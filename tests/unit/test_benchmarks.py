"""Published benchmarks: formats, counts, options in a seeded order, and the tables."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from algorithms import Completion, Group
from srft_ray import UserError
from srft_ray.commands import benchmark as module
from srft_ray.commands.benchmark import Request, benchmark, make_benchmark_config
from srft_ray.commands.benchmark_cli import split_words
from srft_ray.commands.benchmark_comparison import flips
from srft_ray.commands.benchmark_scores import Scores
from srft_ray.commands.benchmark_table import average, markdown
from srft_ray.commands.evaluate import Evaluation
from srft_ray.data.benchmark_prompts import prompt_rows, shuffled_options
from srft_ray.data.benchmark_rows import Problem, read_problems
from srft_ray.data.benchmark_sets import BENCHMARKS, SUITES
from srft_ray.data.benchmarks import checksum, find_benchmarks
from srft_ray.observe import evaluation_ledger
from srft_ray.observe.evaluation import Outcomes

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
ANSWERS = {
    "aime24": ["200", "77"],
    "aime25": ["17", "255"],
    "amc": ["27", "144"],
    "amc23": ["36", "60"],
    "math500": [r"\left( 3, \frac{\pi}{2} \right)", r"\frac{3}{2}"],
    "minerva": ["4.5e33", "2 x"],
    "olympiad": ["2, -2", "6"],
    "arc_c": ["B", "C"],
    "gpqa_diamond": ["A", "A"],
    "mmlu_pro": ["J", "B"],
}


@pytest.fixture(scope="module")
def found():
    return find_benchmarks(SAMPLES, SUITES["all"], any_count=True)


def test_every_published_format_is_read(found):
    assert {name: [problem.answer for problem in one.problems] for name, one in found.items()} == ANSWERS
    assert found["gpqa_diamond"].problems[0].options == ("6", "4", "12", "2, in its core")
    assert found["arc_c"].problems[1].options == ("helium", "neon", "carbon dioxide")
    assert len(found["mmlu_pro"].problems[0].options) == 10
    assert all(problem.question for one in found.values() for problem in one.problems)
    assert list(find_benchmarks(SAMPLES, SUITES["paper"], any_count=True)) == list(SUITES["paper"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not there")
def test_the_shared_sets_have_their_counts_and_checksums():
    found = find_benchmarks(SHARED, SUITES["all"])
    assert list(found) == ["aime24", "amc23", "math500", "minerva", "arc_c"]
    assert all(one.is_known for one in found.values())


def test_another_number_of_rows_is_refused_and_a_folder_without_sets(tmp_path):
    with pytest.raises(UserError, match=r"aime_2024.jsonl has 2 rows, but AIME24 has 30"):
        find_benchmarks(SAMPLES, ["aime24"])
    with pytest.raises(UserError, match="holds none of the benchmarks aime24"):
        find_benchmarks(tmp_path, ["aime24"])
    with pytest.raises(UserError, match="no benchmark 'aime42': did you mean 'aime25'"):
        find_benchmarks(SAMPLES, ["aime42"])
    (tmp_path / "aime24.jsonl").write_text('{"question": "q", "answer": "1"}\n')
    (tmp_path / "AIME_2024.json").write_text('[{"question": "q", "answer": "1"}]')
    with pytest.raises(UserError, match="holds AIME24 twice"):
        find_benchmarks(tmp_path, ["aime24"], any_count=True)


def test_a_checksum_is_of_the_content_and_not_of_the_format(tmp_path, found):
    rows = [{"prompt": f" {p.question}\n", "answer": f"\\boxed{{{p.answer}}}"} for p in found["amc"].problems]
    (tmp_path / "amc.json").write_text(json.dumps(rows, indent=3))
    again = find_benchmarks(tmp_path, ["amc"], any_count=True)["amc"]
    assert again.checksum == found["amc"].checksum and not again.is_known
    assert checksum(again.problems[:1]) != checksum(again.problems)


def test_the_file_of_luffy_holds_several_sets_and_repeats_prompts(tmp_path):
    def row(source, question, answer):
        prompt = [{"role": "system", "content": "think"}, {"role": "user", "content": question}]
        return {"data_source": source, "prompt": prompt, "reward_model": {"ground_truth": answer}}

    rows = [row("aime", "unused", "0"), row("minerva", "a?", "1")] + [row("amc", "b?", "2")] * 32
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "valid.all.parquet")
    found = find_benchmarks(tmp_path, ["amc", "minerva"], any_count=True)
    assert found["amc"].problems == [Problem("b?", "2")] and found["minerva"].problems == [Problem("a?", "1")]


def test_options_that_are_written_in_the_question(tmp_path):
    def read(text, answer="B"):
        (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": text, "answer": answer}))
        return next(read_problems(tmp_path / "x.jsonl", is_choice=True))

    assert read("Why?\n\nA) this\nB) that") == Problem("Why?", "B", ("this", "that"))
    assert read("Why?\n(1) this\n(2) that", "2") == Problem("Why?", "B", ("this", "that"))
    for text in ("Why?\nA) this\nC) that", "Why?\nA) this", "A) this\nB) that\nand so on?", "No options"):
        assert read(text) == Problem(text, "B"), "what cannot be told is left as it is"
    with pytest.raises(UserError, match=r"The answer 'E' in .* is none of its options A, B"):
        read("Why?\nA) this\nB) that", "E")


def test_options_are_shuffled_by_a_seed_for_each_prompt_and_sample(found):
    gpqa = found["gpqa_diamond"]
    rows = prompt_rows(gpqa, 16, seed=0)
    assert rows == prompt_rows(gpqa, 16, seed=0) and rows != prompt_rows(gpqa, 16, seed=1)
    places = [(r["metadata"]["evaluation"]["prompt_id"], r["metadata"]["evaluation"]["sample"]) for r in rows]
    assert places == [(prompt, sample) for prompt in range(2) for sample in range(16)]
    assert len({row["prompt"] for row in rows[:16]}) > 8 and set(Counter(r["answer"] for r in rows)) == {
        *"ABCD"
    }
    for row in rows[:16]:
        assert f"\n{row['answer']}) 6" in row["prompt"] and row["metadata"]["letters"] == "ABCD"
        assert "LETTER is one of ABCD" in row["prompt"]
    ten = found["mmlu_pro"].problems[0]
    counts = Counter(shuffled_options(ten, str(key))[1] for key in range(1000))
    assert set(counts) == {*"ABCDEFGHIJ"} and min(counts.values()) > 60


def test_open_questions_have_one_row_each_and_an_instruction(found):
    rows = prompt_rows(found["aime24"], 32, seed=0)
    assert len(rows) == 2 and all("\\boxed{" in row["prompt"] for row in rows)
    bare = prompt_rows(found["aime24"], 32, seed=0, bare=True)
    assert bare[0]["prompt"] == found["aime24"].problems[0].question


def test_the_config_of_a_benchmark(found, tmp_path, tiny_model):
    settings = {
        "model": {"max_length": 512},
        "rollout": {"max_new_tokens": 64},
        "evaluation": {"temperature": 0.6},
    }
    sets = {name: found[name] for name in ("aime24", "gpqa_diamond")}
    request = Request(["m"], sets, 4, 1, False, False, settings, ["data.template=chat"])
    config = make_benchmark_config(request, str(tiny_model), tmp_path / "out")
    data = config.evaluation.data
    assert (data["aime24"]["samples"], data["aime24"]["max_prompts"]) == (4, 1)
    assert (data["gpqa_diamond"]["samples"], data["gpqa_diamond"]["max_prompts"]) == (1, 4)
    assert config.data.overlong == "error" and config.data.template == "chat"
    assert config.model.path == str(tiny_model) and config.run.dir == str(tmp_path / "out")
    file = Path(data["gpqa_diamond"]["path"])
    stamp = file.stat().st_mtime_ns
    assert len(file.read_text().splitlines()) == 8
    make_benchmark_config(request, str(tiny_model), tmp_path / "out")
    assert file.stat().st_mtime_ns == stamp, "an evaluation is continued only with the same file"


def outcomes(rewards):
    rewards = np.asarray(rewards, dtype=float)
    prompts, samples = rewards.shape
    flat = rewards.ravel()
    zeros = np.zeros(flat.size)
    return Outcomes(
        np.repeat(np.arange(prompts), samples),
        np.arange(prompts),
        flat,
        ["match" if reward else "no_answer" for reward in flat],
        ["1" if reward else None for reward in flat],
        zeros.astype(bool),
        np.full(flat.size, 10),
        zeros,
    )


def test_tables(found):
    sets = {name: found[name] for name in ("aime24", "arc_c")}
    first = {
        "aime24": Scores(outcomes([[1, 0], [0, 0]]), np.array([1.0, 0.0])),
        "arc_c": Scores(outcomes([[1], [0]])),
    }
    second = {"aime24": Scores(outcomes([[1, 1], [1, 1]])), "arc_c": Scores(outcomes([[0], [1]]))}
    text = markdown(sets, {"old": first, "new": second})
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells:
            rows.setdefault(cells[0], cells[1:])  # the second table has the models' names again
    assert rows["model"] == ["AIME24 avg@2", "ID average", "ARC-C avg@1", "OOD average"]
    assert rows["old"][0].startswith("25.0 [") and rows["new"][0].startswith("100.0 [")
    assert rows["old"][1].startswith("25.0 ± ") and rows["old"][2].startswith("50.0 [")
    assert rows["old (lenient grader)"] == ["50.0", "50.0", "–", "–"]
    assert rows["new − old"][0] == "difference, points"
    assert "| AIME24 | +75.0 [" in text and "| 2 / 0 |" in text and "| 1 / 1 |" in text
    assert "these are not here: amc, math500" in text and "not compared" in text
    assert average([np.array([0.0, 1.0]), np.array([1.0, 1.0])]) == "75.0 ± 49.0"
    assert flips(np.array([1.0, 0.0, 0.4]), np.array([0.5, 1.0, 0.6])) == (2, 1)


def test_a_model_may_stand_beside_overrides():
    words = ["runs/a=b/hf", "run.seed=3", "org/model", "data.template=a/{prompt}"]
    assert split_words(words) == (["runs/a=b/hf", "org/model"], ["run.seed=3", "data.template=a/{prompt}"])


def test_no_two_sets_have_the_same_name():
    aliases = [alias for benchmark in BENCHMARKS.values() for alias in benchmark.aliases]
    assert len(aliases) == len(set(aliases))


def test_several_models_are_compared(found, tmp_path, tiny_model, monkeypatch):
    """Only the sampling is left out: each model's ledger is written as the evaluation would."""

    def evaluate(config):
        folder = tmp_path / f"ledger-{Path(config.model.path).name}"
        for name, settings in config.evaluation.data.items():
            rows = [json.loads(line) for line in Path(settings["path"]).read_text().splitlines()]
            groups = []
            for number, row in enumerate(rows):
                reward = float(config.model.path.endswith("other"))
                completions = [
                    Completion(s, "rollout", "x", [1], [-1.0], reward=reward, verdict="match", answer="1")
                    for s in range(settings["samples"])
                ]
                metadata = row.get("metadata", {})
                groups.append(Group(0, number, "p", [1], row["answer"], metadata, completions, name))
            evaluation_ledger.write_part(folder, name, 0, 0, groups)
            evaluation_ledger.join(folder, name, 0, [0])
        return Evaluation(folder, [])

    monkeypatch.setattr(module, "evaluate_models", lambda configs: [evaluate(one) for one in configs])
    other = tmp_path / "other"
    other.symlink_to(tiny_model)
    settings = {"model": {"max_length": 512}, "rollout": {"max_new_tokens": 64}}
    sets = {name: found[name] for name in ("aime24", "mmlu_pro")}
    request = Request([str(tiny_model), str(other)], sets, 4, None, False, True, settings)
    text = benchmark(request, tmp_path / "out")
    assert f"other − {tiny_model.name}" in text and "| +100.0 [" in text and "| 2 / 0 |" in text
    saved = json.loads((tmp_path / "out/benchmark.json").read_text())
    assert saved["models"]["other"]["mmlu_pro"]["samples"] == [4, 4]
    assert (tmp_path / "out/benchmark.md").read_text() == text + "\n"
