"""Every key that the code writes is documented."""

import re
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import torch.distributed as dist

import algorithms
from algorithms import Completion, Group
from srft_ray.observe import evaluation_ledger
from srft_ray.observe import metrics_reference as reference
from srft_ray.observe.evaluation import evaluation_record
from srft_ray.observe.journal import read_json_lines, record_checkpoint, record_event
from srft_ray.observe.ledger import SCHEMA, rows
from srft_ray.observe.loggers import RAY_GAUGES
from srft_ray.observe.metrics import group_metrics, utilization
from srft_ray.sync.health import HealthMonitor

ROOT = Path(__file__).resolve().parents[2]
GROUP = Group(0, 0, "p", [1], "r", completions=[Completion(0, "rollout", "x", [1], [-1.0], 0)])


def undocumented(table, keys):
    return [key for key in keys if reference.find_entry(table, key) is None]


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_every_column_of_the_ledger_is_documented_in_its_order():
    assert list(reference.LEDGER) == SCHEMA.names == list(rows([GROUP])[0])


def test_every_key_of_a_step_that_is_taken_from_groups_and_times_is_documented(one_rank):
    found = group_metrics([GROUP], 0, torch.device("cpu"))
    times = {"time/step": 1.0, "time/learner": 1.0, "tokens": 1.0}
    keys = [*found, *utilization(found | times), *HealthMonitor(1.0, print).metrics(0, 0.0)]
    assert not undocumented(reference.METRICS, keys)


def test_every_key_of_a_step_that_the_learner_writes_is_documented():
    """The keys as they stand in the code of the learner's metrics and of its record."""
    sources = [ROOT / "srft_ray/train" / name for name in ("learner.py", "step_metrics.py", "worker.py")]
    text = "".join(source.read_text() for source in sources)
    keys = re.findall(
        r'"((?:loss|count|weight|entropy|ratio|time|grad_norm|lr|micro_batches|tokens)(?:/\w+)?)"\]?(?::| =)',
        text,
    )
    assert {"lr", "grad_norm", "time/step"} <= set(keys)
    assert not undocumented(reference.METRICS, [*keys, "parity/tokens", "steps/skipped_nonfinite"])


def test_the_figures_of_all_terms_are_documented():
    for name, method in algorithms.REGISTRY.items():
        for term in stage_terms(method()):
            figures = getattr(term, "metrics", None) or getattr(term, "watch", None) or {}
            keys = [f"{figure}/{term.name}" for figure in ("loss", "count", "weight", *figures)]
            assert not undocumented(reference.METRICS, keys), name


def stage_terms(algorithm):
    return [term for step in (0, 99) for term in algorithm.stage(step, 100).algorithm.terms()]


def test_the_gauges_and_the_other_files_are_documented(tmp_path):
    assert not undocumented(reference.METRICS, [key for key, _ in RAY_GAUGES.values()])
    assert list(reference.EVALUATION_LEDGER) == evaluation_ledger.SCHEMA.names
    table = pa.Table.from_pylist(evaluation_ledger.rows([GROUP]), evaluation_ledger.SCHEMA)
    of_demonstrations = ["demo_loss", "demo_entropy"]  # learners add them
    assert list(reference.EVALUATIONS) == [*evaluation_record("held", 0, table), *of_demonstrations]
    record_checkpoint(tmp_path, 1, "there")
    record_event(tmp_path, "engine", "died")
    assert list(reference.CHECKPOINTS) == list(read_json_lines(tmp_path / "checkpoints.jsonl")[0])
    assert list(reference.EVENTS) == list(read_json_lines(tmp_path / "events.jsonl")[0])


def test_a_pattern_stands_for_one_name_and_an_unknown_key_has_no_entry():
    assert reference.find_entry(reference.METRICS, "loss/sft_demo") is reference.METRICS["loss/<term>"]
    for key in ("loss/a/b", "losses", "xloss/a", "loss/"):
        assert reference.find_entry(reference.METRICS, key) is None


def test_the_page_has_every_key():
    page = reference.metrics_markdown()
    for _, _, table in reference.TABLES:
        for key, entry in table.items():
            assert f"| `{key}` | {entry.meaning} | {entry.unit} |" in page
