"""Evaluation of a model on disk with the real engine, and of a run while it trains."""

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from srft_ray import fit, make_config
from srft_ray.commands.evaluate import evaluate_model
from srft_ray.observe import evaluation_ledger as ledger
from srft_ray.observe.evaluation import evaluation_record
from tests.conftest import base_config
from tests.ray.conftest import Run

pytestmark = pytest.mark.usefixtures("local_ray")
TIMES = ("seconds",)
OWN = {"samples": 1, "temperature": 0.5, "max_new_tokens": 8, "verifier": "math", "template": "Q {prompt}"}


def what(table):
    """The rows without what depends on the clock."""
    return table.drop_columns(list(TIMES)).to_pylist()


def test_an_evaluation_goes_on_where_its_ledger_ends(tmp_path, tiny_model):
    evaluation = {"samples": 2, "data": {"plain": {}, "own": OWN}}
    config = make_config(base_config(tmp_path, tiny_model, evaluation=evaluation))
    done = evaluate_model(config)
    plain, own = (ledger.read(done.folder, name, 0) for name in ("plain", "own"))
    assert [(row["prompt_id"], row["sample"]) for row in plain.to_pylist()] == [
        (prompt, sample) for prompt in range(8) for sample in range(2)
    ]
    assert len(own) == 8 and all(len(row["response_ids"]) <= 8 for row in own.to_pylist())
    assert all(row["prompt"].startswith("Q What") and row["reason"] for row in own.to_pylist())
    assert done.records == [evaluation_record("plain", 0, plain), evaluation_record("own", 0, own)]

    # As if it had died after three groups of the first set, of which the engine had done blocks of one size.
    for name in ("plain", "own"):
        ledger.table_file(done.folder, name, 0).unlink()
    part = ledger.part_file(done.folder, "plain", 0, 0)
    pq.write_table(plain.filter(pc.less(plain["group_id"], 3)), part)
    before = pq.read_table(part)["seconds"].to_pylist()
    again = evaluate_model(config)
    assert again.folder == done.folder and again.records == done.records
    repeated = ledger.read(done.folder, "plain", 0)
    assert what(repeated) == what(plain) and what(ledger.read(done.folder, "own", 0)) == what(own)
    assert repeated["seconds"].to_pylist()[:6] == before, "what was there was not sampled again"

    stamp = ledger.table_file(done.folder, "plain", 0).stat().st_mtime_ns
    assert evaluate_model(config).records == done.records
    assert ledger.table_file(done.folder, "plain", 0).stat().st_mtime_ns == stamp, "nothing was repeated"


def test_a_run_keeps_what_its_evaluations_sampled(tmp_path, tiny_model):
    """Two learners write parts of one table; a continued run has each table once."""
    config = make_config(
        base_config(
            tmp_path,
            tiny_model,
            learner={"num_workers": 2},
            trainer={"steps": 2, "evaluate_every": 2},
            evaluation={"samples": 2, "max_prompts": 5, "data": {"held": {}, "own": OWN}},
        )
    )
    run = Run(fit(config).run_dir)
    assert ledger.tables(run.dir) == [("held", 0), ("held", 2), ("own", 0), ("own", 2)]
    assert not list((run.dir / "evaluations").glob("*/*.part"))
    for record in run.evaluations:
        table = ledger.read(run.dir, record["set"], record["step"])
        assert record.pop("demo_entropy") > 0 and record.pop("demo_loss") > 0
        assert record == evaluation_record(record["set"], record["step"], table)
        assert len(table) == record["prompts"] * record["samples"] == 5 * (1 if record["set"] == "own" else 2)
        assert set(table["policy_version"].to_pylist()) == {record["step"]}
