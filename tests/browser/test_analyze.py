"""All analyses of one small run with real models, by one command."""

import pyarrow.parquet as pq
import pytest

from srft_ray.commands.analysis.study import Settings, study
from srft_ray.errors import UserError
from tests.unit.test_page import write_run

TABLES = (
    "token_shift",
    "tokens",
    "dynamics",
    "curves",
    "difficulty",
    "pass_at_k",
    "accuracy_by_cost",
    "weights",
)


def test_one_command_writes_every_table(tmp_path, tiny_model, untied_model):
    folder = write_run(tmp_path / "run", ["x", "y"], steps=3, groups=2)
    (folder / "config.yaml").write_text(f"model: {{path: {tiny_model}}}\n")
    (folder / "checkpoints/step-3").mkdir(parents=True)
    (folder / "checkpoints/step-3/hf").symlink_to(untied_model)
    page = study(folder, Settings(against=[str(untied_model)], texts=4)).read_text()
    tables = {name: pq.read_table(folder / "analysis" / f"{name}.parquet").to_pylist() for name in TABLES}
    assert len(tables["tokens"]) == 12 and {row["kind"] for row in tables["tokens"]} == {"right", "wrong"}
    by_group = {row["tokens of"]: row for row in tables["token_shift"]}
    assert by_group["all"]["tokens"] == 12 and by_group["all"]["js"] >= 0
    dynamics = {(row["step"], row["kind"]): row for row in tables["dynamics"]}
    first = dynamics[0, "right"]
    assert first["KL to base"] == pytest.approx(0, abs=1e-6) and first["KL to last"] > 0
    assert dynamics[3, "right"]["KL to last"] == pytest.approx(0, abs=1e-6)
    assert f"KL to {untied_model.name}" in dynamics[0, "right"]
    assert [
        (row["step"], row["group_id"], row["rollouts"], row["right"]) for row in tables["difficulty"]
    ] == [(step, 2 * step + group, 2, 1) for step in range(3) for group in range(2)]
    assert {row["sequences of"] for row in tables["curves"]} == {"rollout match", "rollout mismatch"}
    for name in ("token_shift", "dynamics", "curves", "pass_at_k", "accuracy_by_cost", "weights"):
        assert (folder / "analysis" / f"{name}.png").stat().st_size > 1000 and f"({name}.png)" in page
    with pytest.raises(UserError, match="has no ledger"):
        study(tmp_path, Settings())
