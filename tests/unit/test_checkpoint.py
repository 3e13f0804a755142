"""Checkpoints on storage: atomic, checked, kept by policy, on any file system of pyarrow."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save

from srft_ray.config.load import make_config
from srft_ray.config.resolve import resolve
from srft_ray.data.plan import StepSize, StreamPlan
from srft_ray.errors import UserError
from srft_ray.observe import journal
from srft_ray.observe.journal import append_json, read_json_lines
from srft_ray.run.driver import is_finished
from srft_ray.run.evaluation_checks import check_best_figure
from srft_ray.run.preflight import open_store
from srft_ray.train.checkpoint import COMPLETE, DAMAGED
from srft_ray.train.retention import BestStep, Retention
from tests.conftest import base_config

STATE = {"a|weight": torch.arange(6.0), "b|exp_avg": torch.tensor([0.5, -0.5])}


def config_for(folder, **trainer):
    return make_config(
        {
            "model": {"path": "x"},
            "data": {"path": "x"},
            "run": {"dir": str(folder), "name": "run"},
            "trainer": trainer,
            "evaluation": {"data": {"held": {}}},
        }
    )


def write(store, step, commit=True):
    files = {
        "state-00000-00000.safetensors": store.write(step, "state-00000-00000.safetensors", save(STATE)),
        "hf/config.json": store.write(step, "hf/config.json", b"{}"),
    }
    if commit:
        store.commit(step, {"files": files, "updates": step})


@pytest.fixture
def store(tmp_path):
    (tmp_path / "run").mkdir()
    return open_store(config_for(tmp_path))


def test_without_its_marker_there_is_no_checkpoint(store):
    assert store.latest() == store.newest_whole() == 0
    write(store, 3)
    write(store, 6, commit=False)
    assert store.steps() == [3] and store.latest() == store.newest_whole() == 3
    store.discard_after(3)
    assert not (store.run_dir / "checkpoints/step-6").exists() and store.steps() == [3]


def test_tensors_are_read_as_they_were_written(store):
    write(store, 1)
    reader = store.tensors(1)
    assert all(torch.equal(reader[name], tensor) for name, tensor in STATE.items())
    assert "a|weight" in reader and "c" not in reader and reader.manifest["updates"] == 1


def cut(folder):
    file = folder / "state-00000-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def flip(folder):
    file = folder / "state-00000-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "123 of 128 bytes": cut,
    "has changed": flip,
    "0 of 2 bytes": lambda folder: (folder / "hf/config.json").unlink(),
    "cannot be read": lambda folder: (folder / COMPLETE).write_text('{"format": 1,'),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(store, what, capsys):
    write(store, 2)
    write(store, 4)
    size = (store.run_dir / "checkpoints/step-4/state-00000-00000.safetensors").stat().st_size
    DAMAGES[what](store.run_dir / "checkpoints/step-4")
    assert store.newest_whole() == 2 and store.steps() == [2]
    message = read_json_lines(store.run_dir / "events.jsonl")[0]["message"]
    assert (
        "step 4 is damaged" in message
        and what.replace("123 of 128", f"{size - 5} of {size}") in message
        and message in capsys.readouterr().err
    )
    store.discard_after(2)
    assert (store.run_dir / "checkpoints/step-4" / DAMAGED).exists(), "what is damaged stays to be looked at"
    store.discard(4)
    write(store, 4)
    assert store.newest_whole() == 4 and not (store.run_dir / "checkpoints/step-4" / DAMAGED).exists()


def test_kept_are_the_newest_the_regular_and_the_best(tmp_path):
    config = config_for(tmp_path, keep_checkpoints=2, keep_every=10, keep_best="reward/mean")
    store = open_store(config)
    (tmp_path / "run").mkdir()
    for step, reward in enumerate([0.1, 0.9, 0.2, 0.3, 0.4, 0.5, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]):
        append_json(store.run_dir / "metrics.jsonl", {"step": step, "reward/mean": reward})
    for step in range(1, 13):
        write(store, step)
    Retention(store, config.trainer).prune()
    assert store.steps() == [2, 10, 11, 12]
    append_json(store.run_dir / "evaluations.jsonl", {"step": 11, "set": "held", "avg": 70.0})
    append_json(store.run_dir / "evaluations.jsonl", {"step": 10, "set": "held", "avg": 80.0})
    Retention(store, config_for(tmp_path, keep_checkpoints=1, keep_best="held").trainer).prune()
    assert store.steps() == [10, 12]
    Retention(store, config_for(tmp_path).trainer).prune()
    assert store.steps() == [10, 12], "nothing is removed unless a number is set"


def test_what_is_kept_does_not_read_all_metrics_again(tmp_path, monkeypatch):
    config = config_for(tmp_path, keep_checkpoints=1, keep_best="reward/mean")
    store = open_store(config)
    (tmp_path / "run").mkdir()
    retention = Retention(store, config.trainer)
    parsed = []
    parse = journal.parse_line
    monkeypatch.setattr(journal, "parse_line", lambda line, name: parsed.append(line) or parse(line, name))
    for step in range(200):
        append_json(store.run_dir / "metrics.jsonl", {"step": step, "reward/mean": 1.0 - 0.001 * step})
        if step % 10 == 9:
            write(store, step + 1)
            retention.prune()
    assert store.steps() == [10, 200]
    assert len(parsed) < 2 * 200


@pytest.mark.parametrize(
    ("settings", "best"),
    [
        ({"keep_best": "entropy/demo", "keep_best_mode": "min"}, 5),
        ({"keep_best": "entropy/demo", "keep_best_mode": "band", "keep_best_band": [0.4, 0.8]}, 3),
        ({"keep_best": "entropy/demo", "keep_best_mode": "band", "keep_best_band": [2.0, 3.0]}, 1),
        ({"keep_best": "eval/held/entropy", "keep_best_mode": "min"}, 4),
        ({"keep_best": "eval/held/avg"}, 2),
        ({"keep_best": "eval/held/unknown"}, None),
    ],
    ids=str,
)
def test_the_best_is_the_highest_the_lowest_or_within_a_band(tmp_path, settings, best):
    config = config_for(tmp_path, keep_checkpoints=1, **settings)
    store = open_store(config)
    (tmp_path / "run").mkdir()
    for step, entropy in enumerate([0.9, 0.7, 0.5, 0.3, 0.2, 0.3]):
        append_json(store.run_dir / "metrics.jsonl", {"step": step, "entropy/demo": entropy})
    for step, average, entropy in ((2, 60.0, 0.6), (4, 50.0, 0.1)):
        figures = {"step": step, "set": "held", "avg": average, "entropy": entropy, "length_wrong": None}
        append_json(store.run_dir / "evaluations.jsonl", figures)
    for step in range(1, 7):
        write(store, step)
    Retention(store, config.trainer).prune()
    assert store.steps() == ([6] if best is None else [best, 6])


def test_other_storage(tmp_path):
    (tmp_path / "run").mkdir()
    for path in (f"file://{tmp_path}/bucket", f"{tmp_path}/bucket"):
        store = open_store(config_for(tmp_path, checkpoint_path=path))
        write(store, 5)
        assert (tmp_path / "bucket/run/step-5" / COMPLETE).exists() and store.newest_whole() == 5
        assert store.address(5, "hf") == str(tmp_path / "bucket/run/step-5/hf")
        store.discard(5)
    memory = open_store(config_for(tmp_path, checkpoint_path="mock:///bucket"))
    write(memory, 7)
    assert memory.address(7, "hf") == "mock://bucket/run/step-7/hf"
    assert memory.newest_whole() == 7 and torch.equal(memory.tensors(7)["a|weight"], STATE["a|weight"])
    manifest = memory.manifest(7)
    assert manifest["files"]["hf/config.json"] == {"bytes": 2, "crc32": 2745614147} and json.dumps(manifest)
    memory.discard_after(6)
    assert memory.steps() == []


def test_a_password_in_the_path_is_refused_and_not_repeated(tmp_path):
    with pytest.raises(UserError, match="holds a password") as refused:
        open_store(config_for(tmp_path, checkpoint_path="s3://name:hidden@bucket/runs"))
    assert "hidden" not in str(refused.value)


def test_storage_that_cannot_be_reached_is_named(tmp_path):
    with pytest.raises(UserError, match=r"trainer\.checkpoint_path=nowhere://x cannot be reached"):
        open_store(config_for(tmp_path, checkpoint_path="nowhere://x"))


def test_folders_of_other_names_are_no_checkpoints(tmp_path):
    store = open_store(config_for(tmp_path))
    write(store, 4)
    for name in ("step-4-backup", "step-", "step-new", "step--1"):
        (tmp_path / "run/checkpoints" / name).mkdir()
    assert store.steps() == [4] and store.latest() == 4
    store.discard_after(0)
    assert store.steps() == [] and (tmp_path / "run/checkpoints/step-4-backup").exists()


def patient(folder, **trainer):
    figures = {"keep_best": "eval/held/demo_loss", "keep_best_mode": "min", "checkpoint_every": 2}
    return config_for(folder, **({"evaluate_every": 2, "patience": 2} | figures | trainer))


def record_losses(folder, losses):
    for index, loss in enumerate(losses):
        append_json(
            folder / "run/evaluations.jsonl",
            {"step": 2 * index, "set": "held", "avg": 1.0, "demo_loss": loss},
        )


@pytest.mark.parametrize(
    ("losses", "over", "best"),
    [
        ([0.1, 0.9, 0.8, 0.7], False, 6),
        ([0.1, 0.9, 0.7, 0.8], False, 4),
        ([0.1, 0.9, 0.7, 0.8, 0.71], True, 4),
        ([0.1, 0.9, 0.7, 0.8, 0.7], True, 8),  # an equal one is not better, and newer
        ([0.1, 0.7, 0.7, 0.7], True, 6),
        ([0.1, 0.5], False, 2),  # the model that training began with is none of its checkpoints
        ([0.1, 0.9, float("nan"), 0.95], False, 2),
        ([], False, None),
    ],
)
def test_patience_counts_evaluations_after_the_best_one(tmp_path, losses, over, best):
    (tmp_path / "run").mkdir()
    record_losses(tmp_path, losses)
    found = BestStep(tmp_path / "run", patient(tmp_path).trainer)
    assert found.is_patience_over() == over
    assert found.of([2, 4, 6, 8]) == best
    assert not BestStep(tmp_path / "run", config_for(tmp_path).trainer).is_patience_over()


def test_a_run_that_ended_by_its_patience_is_finished_with_that_patience_only(tmp_path):
    (tmp_path / "run").mkdir()
    store = open_store(patient(tmp_path))
    write(store, 4)
    assert not store.finished(patient(tmp_path).trainer)
    rule = patient(tmp_path).trainer.stopping_rule
    store.commit(4, {**store.manifest(4), "finished": True, "ended_by": rule})
    assert store.finished(patient(tmp_path).trainer)
    assert store.finished(patient(tmp_path, steps=4, patience=3).trainer), "it is at its last step"
    assert not store.finished(patient(tmp_path, patience=3).trainer)
    assert not store.finished(patient(tmp_path, keep_best="held", keep_best_mode="max").trainer)
    assert not store.finished(config_for(tmp_path).trainer)
    store.commit(4, {**store.manifest(4), "finished": True, "ended_by": None})
    assert not store.finished(config_for(tmp_path).trainer), "a shorter run was"


def test_a_finished_run_whose_last_evaluation_is_gone_is_evaluated_again(tmp_path):
    """A longer run was begun, which removes the evaluation after its first step, and given up."""
    (tmp_path / "run").mkdir()
    config = config_for(tmp_path, steps=4, evaluate_every=2)
    store = open_store(config)
    write(store, 4)
    store.commit(4, {**store.manifest(4), "finished": True, "ended_by": None})
    plan = StreamPlan(4, (StepSize(0, 4),), 1, 2, {"held": 3}, 1)
    prepared = SimpleNamespace(
        resolved=SimpleNamespace(config=config), store=store, plan=plan, evaluation={"held": None}
    )
    assert not is_finished(prepared)
    append_json(store.run_dir / "evaluations.jsonl", {"step": 4, "set": "held", "avg": 1.0})
    assert is_finished(prepared)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"keep_best": None}, "trainer.patience compares evaluations, and trainer.keep_best=None"),
        ({"keep_best": "reward/mean"}, "trainer.keep_best=reward/mean is no figure of one"),
        ({"evaluate_every": 0}, "needs a checkpoint of every evaluation"),
        ({"evaluate_every": 3}, "they are 3 and 2"),
    ],
)
def test_a_patience_that_could_never_end_is_refused(tmp_path, trainer, message):
    with pytest.raises(UserError, match=message):
        patient(tmp_path, **trainer)


class Rows:
    """Prepared rows of which only the last has demonstrations."""

    def row(self, index):
        return {"demonstrations": ["d"] if index == 3 else []}


@pytest.mark.parametrize(
    ("best", "size", "message"),
    [
        ("eval/held/demo_loss", 4, None),
        ("held", 0, None),
        ("eval/held/entropy", 3, None),
        ("eval/held/demo_loss", 3, r"no prompt of evaluation\.data\.held has one that fits"),
        ("eval/held/demo_los", 4, "did you mean 'demo_loss'"),
        ("eval/other/demo_loss", 4, "a figure of the set 'other', which is not evaluated"),
    ],
)
def test_a_figure_that_is_never_recorded_is_refused(tmp_path, best, size, message):
    config = config_for(tmp_path, keep_checkpoints=1, keep_best=best)
    with nullcontext() if message is None else pytest.raises(UserError, match=message):
        check_best_figure(config, {"held": Rows()}, {"held": size})


def test_patience_is_refused_for_several_stages(tmp_path, tiny_model):
    patient_run = {
        "steps": 4,
        "patience": 1,
        "keep_best": "heldout",
        "evaluate_every": 1,
        "checkpoint_every": 1,
    }
    sections = {"trainer": patient_run, "evaluation": {"data": {"heldout": {}}}}
    resolve(make_config(base_config(tmp_path, tiny_model, algorithm={"name": "sft"}, **sections)))
    with pytest.raises(UserError, match="would end two_stage in its first stage or undo its second"):
        resolve(make_config(base_config(tmp_path, tiny_model, algorithm={"name": "two_stage"}, **sections)))
