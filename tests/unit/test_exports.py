"""Exports of evaluations: Inspect reads its log, and the other schema's required parts are there."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from algorithms import Completion, Group
from srft_ray import UserError
from srft_ray.commands.cli import main
from srft_ray.commands.export import export
from srft_ray.observe import evaluation_ledger
from tests.conftest import base_config

REWARDS = [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
HOSTILE = "</script><script>alert(1)</script>\ud800"


def group(number: int) -> Group:
    completions = [
        Completion(
            sample,
            "rollout",
            HOSTILE,
            [5] * (2 + sample),
            [-0.5] * (2 + sample),
            4,
            seed=sample,
            finish_reason="length" if sample else "stop",
            reward=reward,
            verdict="match" if reward else "timeout",
            answer="4" if reward else None,
            reason="because",
        )
        for sample, reward in enumerate(REWARDS[number])
    ]
    return Group(
        4, number, f"p{number}", [1, 2, 3], "4", {}, completions, "held", started_at=1.0, finished_at=3.5
    )


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    """A run directory with one evaluation of three prompts × two samples."""
    run_dir = tmp_path / "my-run"
    sets = {"held": {"temperature": 0.6, "max_new_tokens": 7}}
    values = base_config(tmp_path, tiny_model, evaluation={"data": sets})
    evaluation_ledger.write_part(run_dir, "held", 4, 0, [group(number) for number in range(3)])
    evaluation_ledger.join(run_dir, "held", 4, [0])
    (run_dir / "config.yaml").write_text(yaml.safe_dump(values))
    (run_dir / "metrics.jsonl").touch()
    return run_dir


def test_inspect_reads_its_log(folder: Path):
    log_module = pytest.importorskip("inspect_ai.log", reason="inspect-ai is not installed (extra exports)")
    [file] = export(folder)
    assert file == folder / "exports" / "inspect" / "held-step-4.json"
    log = log_module.read_eval_log(str(file))
    assert log.status == "success" and log.eval.task == "held" and log.eval.config.epochs == 2
    assert log.eval.model == "srft_ray/my-run-step-4" and log.eval.dataset.samples == 3
    assert log.eval.model_generate_config.temperature == 0.6
    assert log.eval.model_generate_config.max_tokens == 7
    samples = {(sample.id, sample.epoch): sample for sample in log.samples}
    assert sorted(samples) == [(prompt, epoch) for prompt in range(3) for epoch in (1, 2)]
    scores = {place: sample.scores["verifier"].value for place, sample in samples.items()}
    assert [[scores[prompt, epoch] for epoch in (1, 2)] for prompt in range(3)] == REWARDS
    cut = samples[0, 2]
    assert cut.output.stop_reason == "max_tokens" and cut.output.usage.output_tokens == 3
    assert cut.target == "4" and "alert(1)" in cut.output.completion
    # Inspect's own mean of its own scores is the figure that the log states.
    stated = log.results.scores[0].metrics["avg@2"].value
    assert stated == pytest.approx(sum(scores.values()) / len(scores))


def inspect_parts(folder: Path) -> dict[str, Any]:
    [file] = export(folder)
    return json.loads(file.read_text())


def test_the_inspect_log_without_inspect(folder: Path):
    log = inspect_parts(folder)
    assert log["version"] == 2 and len(log["samples"]) == 6
    metrics = log["results"]["scores"][0]["metrics"]
    assert metrics["avg@2"]["value"] == pytest.approx(0.5)
    assert metrics["pass@2"]["value"] == pytest.approx(2 / 3)
    assert metrics["avg@2_low"]["value"] < 0.5 < metrics["avg@2_high"]["value"]


def test_the_files_of_every_eval_ever(folder: Path, tmp_path: Path):
    file, lines_file = export(folder, "every-eval-ever", tmp_path / "out")
    whole = json.loads(file.read_text())
    lines = lines_file.read_text().splitlines()
    details = whole["detailed_evaluation_results"]
    # The patterns and required keys are those of the schema 0.3.0.
    uuid = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert re.fullmatch(rf"data/[^/]+/[^/]+/[^/]+/{uuid}_samples\.jsonl", details["file_path"])
    assert tmp_path / "out" / details["file_path"] == lines_file
    assert details["checksum"] == hashlib.sha256(lines_file.read_bytes()).hexdigest()
    assert details["total_rows"] == len(lines) == 6
    required = {"schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata", "model_info"}
    assert required | {"eval_library", "evaluation_results"} <= whole.keys()
    assert whole["schema_version"] == "0.3.0"
    scores = {
        one["metric_config"]["metric_name"]: one["score_details"] for one in whole["evaluation_results"]
    }
    assert scores["avg@2"]["score"] == pytest.approx(0.5)
    assert scores["pass@2"]["score"] == pytest.approx(2 / 3)
    interval = scores["avg@2"]["uncertainty"]["confidence_interval"]
    assert interval["lower"] < 0.5 < interval["upper"]
    first, second = (json.loads(line) for line in lines[:2])
    assert first["evaluation_id"] == whole["evaluation_id"] and first["sample_id"] == "0"
    assert first["evaluation"] == {"score": 1.0, "is_correct": True} and first["error"] is None
    assert first["token_usage"] == {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    assert second["answer_attribution"] == [] and second["error"] == "timeout: because"
    assert export(folder, "every-eval-ever", tmp_path / "out") == [file, lines_file], "the same names again"


def test_the_package_of_every_eval_ever_accepts_its_files(folder: Path):
    package = pytest.importorskip(
        "every_eval_ever.schema", reason="every-eval-ever is not installed; it needs Python 3.12"
    )
    validator = pytest.importorskip("jsonschema").Draft7Validator
    schemas = Path(package.__file__).parent / "schemas"
    file, lines_file = export(folder, "every-eval-ever")
    validator(json.loads((schemas / "eval.schema.json").read_text())).validate(json.loads(file.read_text()))
    of_lines = validator(json.loads((schemas / "instance_level_eval.schema.json").read_text()))
    for line in lines_file.read_text().splitlines():
        of_lines.validate(json.loads(line))


def test_what_cannot_be_exported_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UserError, match=r"holds no config\.yaml: pass a run directory"):
        export(tmp_path)
    with pytest.raises(UserError, match="did you mean 'inspect'"):
        export(folder, "inspct")
    evaluation_ledger.truncate(folder, 0)
    assert main(["export", str(folder)]) == 2
    assert "holds no evaluation: evaluate a model with srft-ray evaluate" in capsys.readouterr().err
