"""Published benchmarks with the real engine, by one command."""

import json
from pathlib import Path

import pytest

from srft_ray.commands.benchmark import Request, benchmark
from srft_ray.data.benchmark_sets import SUITES
from srft_ray.data.benchmarks import find_benchmarks
from srft_ray.observe import evaluation_ledger

pytestmark = pytest.mark.usefixtures("local_ray")
ROOT = Path(__file__).resolve().parents[2]


def test_all_sets_are_evaluated_and_nothing_is_repeated(tmp_path):
    sets = find_benchmarks(ROOT / "tests/samples", SUITES["all"], any_count=True)
    settings = {"model": {"max_length": 1024}, "rollout": {"max_new_tokens": 8}}
    model = str(ROOT / "examples/tiny/base")
    request = Request([model], sets, 2, None, False, True, settings)
    text = benchmark(request, tmp_path / "out")
    assert "ID average" in text and "OOD average" in text and "pass@2" in text
    saved = json.loads((tmp_path / "out/benchmark.json").read_text())
    (folder,) = (tmp_path / "out/evaluations").iterdir()
    for name in sets:
        rows = evaluation_ledger.read(folder, name, 0).to_pylist()
        assert [(row["prompt_id"], row["sample"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)], name
        assert saved["models"]["base"][name]["samples"] == [2, 2]
    shuffled = evaluation_ledger.read(folder, "mmlu_pro", 0)["prompt"].to_pylist()
    assert shuffled[0] != shuffled[1], "each sample has its own order of options"
    stamp = evaluation_ledger.table_file(folder, "aime24", 0).stat().st_mtime_ns
    assert benchmark(request, tmp_path / "out") == text
    assert evaluation_ledger.table_file(folder, "aime24", 0).stat().st_mtime_ns == stamp
