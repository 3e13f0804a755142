"""A run knows its checkpoints, and a start that would lose or mix up something is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from srft_ray.config.load import make_config, to_yaml
from srft_ray.config.resolve import Resolved, resolve
from srft_ray.errors import RunFailed, UserError
from srft_ray.observe.journal import append_json
from srft_ray.run.directory import archive, check_run_directory, choose_start
from srft_ray.run.identity import (
    check_fingerprints,
    file_fingerprint,
    fingerprints,
    model_files_fingerprint,
    new_identity,
    write_identity,
    write_owner,
)
from srft_ray.run.preflight import open_store
from srft_ray.train.checkpoint import CheckpointStore
from tests.conftest import base_config

ID = "mine"


def resolved_run(tmp_path: Path, tiny_model: Path, **sections: Any) -> tuple[Resolved, CheckpointStore]:
    resolved = resolve(make_config(base_config(tmp_path, tiny_model, **sections)))
    return resolved, open_store(resolved.config)


def commit(store: CheckpointStore, step: int, run_id: str = ID) -> None:
    entry = store.write(step, "state", b"content")
    store.commit(step, {"run_id": run_id, "files": {"state": entry}})
    append_json(store.run_dir / "checkpoints.jsonl", {"step": step, "path": store.path(step), "time": 0})


@pytest.fixture
def store(tmp_path: Path, tiny_model: Path) -> CheckpointStore:
    """Three checkpoints outside of the run directory."""
    resolved, store = resolved_run(tmp_path, tiny_model, trainer={"checkpoint_path": str(tmp_path / "disk")})
    resolved.run_dir.mkdir(parents=True)
    for step in (2, 4, 6):
        commit(store, step)
    return store


def start(store: CheckpointStore) -> int:
    return choose_start(store, store.run_dir, ID)


def damage(store: CheckpointStore, step: int) -> None:
    Path(store.path(step, "state")).write_text("other")


def test_a_run_goes_on_at_its_newest_checkpoint(store: CheckpointStore):
    assert start(store) == 6


def test_vanished_storage_is_refused_and_nothing_is_lost(tmp_path: Path, store: CheckpointStore):
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    with pytest.raises(
        RunFailed, match=r"has saved 6 steps, but .* holds no whole checkpoint: mount or restore"
    ):
        start(store)
    (tmp_path / "unmounted").rename(tmp_path / "disk")
    assert start(store) == 6


def test_a_newest_checkpoint_that_is_missing_is_refused(store: CheckpointStore):
    store.discard(6)
    with pytest.raises(RunFailed, match=r"has saved 6 steps, but .* holds 4 of them"):
        start(store)


def test_of_damaged_checkpoints_the_one_before_is_used_as_long_as_there_is_one(store: CheckpointStore):
    damage(store, 6)
    assert start(store) == 4
    assert start(store) == 4, "it was put aside"
    damage(store, 2)
    damage(store, 4)
    for _ in range(2):
        with pytest.raises(RunFailed, match="holds no whole checkpoint"):
            start(store)


def test_a_checkpoint_of_another_run_is_not_loaded(store: CheckpointStore):
    commit(store, 8, run_id="theirs")
    with pytest.raises(RunFailed, match=r"is of another run \(theirs\)"):
        start(store)
    assert 8 in store.steps(), "nor deleted"


def test_two_runs_of_one_name_do_not_share_a_folder_of_checkpoints(tmp_path: Path, tiny_model: Path):
    """Refused before the other has written its first checkpoint, too."""
    shared = {"checkpoint_path": str(tmp_path / "disk")}
    (tmp_path / "a").mkdir()
    first, store = resolved_run(tmp_path / "a", tiny_model, trainer=shared)
    write_owner(store, new_identity({}))
    (tmp_path / "b").mkdir()
    second, _ = resolved_run(tmp_path / "b", tiny_model, trainer=shared)
    with pytest.raises(UserError, match=f"holds checkpoints of another run, that in {first.run_dir}"):
        check_run_directory(second, open_store(second.config))


def test_changed_files_are_named(tmp_path: Path, tiny_model: Path, user_file: Path):
    resolved, _ = resolved_run(tmp_path, tiny_model, verifier={"path": f"{user_file}:score"})
    data = tmp_path / "prepared.arrow"
    data.write_text("rows")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    before = fingerprints(resolved, str(data), "float32")
    assert set(before) == {"data.path", "model.dtype (auto)", "verifier.path", "model.path"}
    check_fingerprints(run_dir, before)
    write_identity(run_dir, new_identity(before))
    check_fingerprints(run_dir, before)
    data.write_text("others")
    now = fingerprints(resolved, str(data), "bfloat16")
    with pytest.raises(UserError, match=r"other content of data\.path, model\.dtype \(auto\): restore it"):
        check_fingerprints(run_dir, now)


def test_fingerprints_see_content_and_not_names_or_times(tmp_path: Path):
    for name, content in (("a", b"x" * 10), ("b", b"x" * 10), ("c", b"x" * 9 + b"y"), ("d", b"x" * 11)):
        (tmp_path / name).write_bytes(content)
    found = [file_fingerprint(tmp_path / name) for name in "abcd"]
    assert found[0] == found[1] and len(set(found)) == 3


def test_a_model_is_told_by_its_files(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(3 * 2**20))
    before = model_files_fingerprint(tmp_path)
    weights.write_bytes(bytes(3 * 2**20 - 1) + b"1")
    assert model_files_fingerprint(tmp_path) != before


def test_a_start_from_scratch_keeps_what_was_there(tmp_path: Path, tiny_model: Path, store: CheckpointStore):
    resolved, _ = resolved_run(
        tmp_path,
        tiny_model,
        trainer={"checkpoint_path": str(tmp_path / "disk")},
        run={"resume": "from_scratch"},
    )
    (resolved.run_dir / "config.yaml").write_text(to_yaml(resolved.config))
    check_run_directory(resolved, store)
    archive(resolved.run_dir, store)
    assert list(resolved.run_dir.iterdir()) == [] and start(store) == 0
    kept = sorted(path.name for path in resolved.run_dir.parent.iterdir() if "archived" in path.name)
    assert len(kept) == 1
    lines = (resolved.run_dir.parent / kept[0] / "checkpoints.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]
    assert len(list((tmp_path / "disk").glob("run.archived-*/step-*"))) == 3
