"""Published benchmarks with the real engine, by one command."""

import json
import shutil
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from ray._private.state import actors
from safetensors.torch import load_file, save_file

from srft_ray.commands.benchmark import Request, benchmark
from srft_ray.data.benchmark_sets import SUITES
from srft_ray.data.benchmarks import find_benchmarks
from srft_ray.observe import evaluation_ledger

pytestmark = pytest.mark.usefixtures("local_ray")
ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "examples/tiny/base"
SETTINGS = {"model": {"max_length": 1024}, "rollout": {"max_new_tokens": 8}}


def test_all_sets_are_evaluated_and_nothing_is_repeated(tmp_path):
    sets = find_benchmarks(ROOT / "tests/samples", SUITES["all"], any_count=True)
    request = Request([str(BASE)], sets, 2, None, False, True, SETTINGS)
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


def write_other(folder: Path, number: int) -> Path:
    """A model with other weights than the base, in bfloat16."""
    shutil.copytree(BASE, folder)
    torch.manual_seed(number)
    tensors = load_file(folder / "model.safetensors")
    changed = {name: tensor + 0.02 * torch.randn_like(tensor) for name, tensor in tensors.items()}
    save_file(
        {name: tensor.to(torch.bfloat16) for name, tensor in changed.items()}, folder / "model.safetensors"
    )
    return folder


def engines() -> int:
    """Actors with an engine that were started so far."""
    return sum("LateProcess" in actor["ActorClassName"] for actor in actors().values())


def test_models_share_one_engine_and_are_those_that_were_evaluated_alone(tmp_path):
    """The command that evaluates them together goes on where their ledgers end."""
    sets = find_benchmarks(ROOT / "tests/samples", ("aime24", "math500", "mmlu_pro"), any_count=True)
    models = [str(BASE), *(str(write_other(tmp_path / f"other{number}", number)) for number in (1, 2))]

    def evaluate(*chosen: str) -> None:
        benchmark(Request(chosen, sets, 4, None, False, False, SETTINGS), tmp_path / "out")

    def tables() -> dict[tuple[str, str], list[dict[str, object]]]:
        """The rows of each model and set."""
        return {
            (folder.name.rpartition("-")[0], name): evaluation_ledger.read(folder, name, 0).to_pylist()
            for folder in (tmp_path / "out/evaluations").iterdir()
            for name in sets
        }

    for model in models:
        evaluate(model)
    alone = tables()
    assert len(alone) == 9
    # As if a command had died: nothing is left of the first model, parts are left of the others.
    for folder in (tmp_path / "out/evaluations").iterdir():
        for name in sets:
            table = evaluation_ledger.table_file(folder, name, 0)
            if name != "aime24" or folder.name.startswith("base"):
                table.unlink()
        if folder.name.startswith("other2"):
            kept = evaluation_ledger.read(folder, "aime24", 0)
            evaluation_ledger.table_file(folder, "aime24", 0).unlink()
            half = kept.filter(pc.less(kept["group_id"], kept["group_id"].to_pylist()[-1]))
            pq.write_table(half, evaluation_ledger.part_file(folder, "aime24", 0, 0))
            assert 0 < len(half) < len(kept)

    started = engines()
    evaluate(*models)
    assert engines() == started + 1
    together = tables()
    for (model, name), rows in alone.items():
        timeless = [[row | {"seconds": 0.0} for row in each] for each in (rows, together[model, name])]
        assert timeless[0] == timeless[1], (model, name)
        assert model == "base" or rows != alone["base", name], "the weights differ"
    assert together["other1", "aime24"] == alone["other1", "aime24"], "what was there was not sampled again"
    seconds = [[row["seconds"] for row in each["other2", "aime24"]] for each in (alone, together)]
    assert seconds[0][:4] == seconds[1][:4] and seconds[0][4:] != seconds[1][4:]
    saved = json.loads((tmp_path / "out/benchmark.json").read_text())
    assert list(saved["models"]) == ["base", "other1", "other2"]
