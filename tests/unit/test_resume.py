"""What may change when a run is continued, who may continue it, and how its records are taken back to the
checkpoint."""

import multiprocessing
import time
from contextlib import nullcontext

import pytest

from srft_ray.config.load import make_config, to_yaml
from srft_ray.config.resolve import resolve
from srft_ray.errors import UserError
from srft_ray.observe.journal import append_json, read_json_lines, record_checkpoint
from srft_ray.observe.rewind import rewind
from srft_ray.run.directory import check_run_directory, resumable_keys
from srft_ray.run.lock import claimed
from srft_ray.run.preflight import open_store
from tests.conftest import base_config


def check(config):
    check_run_directory(resolve(config), open_store(config))


def begun(tmp_path, tiny_model, *, before=None, **now):
    """A run directory with the record of the base config (with `before`), and the config of the run that
    would continue it."""
    before = make_config(base_config(tmp_path, tiny_model, **before or {}))
    (before.run_dir / "groups").mkdir(parents=True)
    (before.run_dir / "config.yaml").write_text(to_yaml(resolve(before).config))
    return make_config(base_config(tmp_path, tiny_model, **now))


@pytest.mark.parametrize(
    "now",
    [
        {},
        {
            "learner": {
                "num_workers": [1, 2],
                "zero_stage": 3,
                "micro_batch_tokens": 4096,
                "resources": {"gold": 1},
            }
        },
        {"cluster": {"num_cpus": 3}},
        {"rollout": {"num_rollouts": 2, "max_new_tokens": 32, "num_engines": 4, "stall_timeout_s": 7}},
        {"hardware": {"utilization": 0.5}},
        {
            "trainer": {
                "steps": 2,
                "groups_per_step": 4,
                "checkpoint_every": 1,
                "keep_checkpoints": 1,
                "max_failures": 9,
            }
        },
    ],
    ids=str,
)
def test_how_and_where_a_run_goes_on_may_change(tmp_path, tiny_model, now):
    check(begun(tmp_path, tiny_model, **now))


@pytest.mark.parametrize(
    ("key", "now"),
    [
        ("learner.lr", {"learner": {"lr": 1e-3}}),
        ("rollout.max_staleness", {"rollout": {"max_staleness": 1}}),
        ("algorithm.name", {"algorithm": {"name": "grpo"}}),
        ("run.seed", {"run": {"seed": 3}}),
        ("data.max_demonstrations", {"data": {"max_demonstrations": 2}}),
    ],
)
def test_what_it_computes_may_not(tmp_path, tiny_model, key, now):
    with pytest.raises(
        UserError, match=rf"already holds a different run \({key} changed\): choose another run.name"
    ):
        check(begun(tmp_path, tiny_model, **now))


@pytest.mark.parametrize(
    ("steps", "done", "sections", "same"),
    [
        (9, 5, {}, True),
        (5, 5, {}, True),
        (4, 5, {}, False),
        (9, 0, {"learner": {"lr_schedule": "linear"}}, True),
        (9, 5, {"learner": {"lr_schedule": "linear"}}, False),
        (9, 2, {"learner": {"lr_schedule": "cosine", "warmup_steps": 2}}, True),
        (9, 3, {"algorithm": {"name": "two_stage", "first_steps": 2}}, True),
    ],
    ids=str,
)
def test_the_steps_may_change_if_those_done_are_the_same(tmp_path, tiny_model, steps, done, sections, same):
    trainer = {"steps": 6, "groups_per_step": 4}
    config = begun(
        tmp_path,
        tiny_model,
        before={"trainer": trainer, **sections},
        trainer=trainer | {"steps": steps},
        **sections,
    )
    if done:
        folder = tmp_path / f"runs/run/checkpoints/step-{done}"
        folder.mkdir(parents=True)
        (folder / "complete.json").write_text("{}")
    with (
        nullcontext()
        if same
        else pytest.raises(UserError, match=r"already holds a different run \(trainer\.steps changed\)")
    ):
        check(config)


def test_the_keys_that_may_change_exist():
    from srft_ray.config.load import all_keys

    assert set(all_keys()) >= resumable_keys()


def test_resume_never_leaves_a_run_alone(tmp_path, tiny_model):
    with pytest.raises(UserError, match=r"already holds a run, and run\.resume=never"):
        check(begun(tmp_path, tiny_model, run={"resume": "never"}))


def test_checkpoints_of_another_run_are_not_taken_for_its_own(tmp_path, tiny_model):
    config = make_config(
        base_config(tmp_path, tiny_model, trainer={"checkpoint_path": str(tmp_path / "store")})
    )
    folder = tmp_path / "store/run/step-4"
    folder.mkdir(parents=True)
    (folder / "complete.json").write_text("{}")
    with pytest.raises(UserError, match="holds checkpoints of another run"):
        check(config)


def hold(config, ready):
    with claimed(config.run_dir):
        ready.set()
        time.sleep(60)


def test_two_processes_cannot_train_in_one_directory_and_a_killed_one_gives_it_back(tmp_path, tiny_model):
    config = make_config(base_config(tmp_path, tiny_model))
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(config, ready))
    process.start()
    assert ready.wait(10)
    with (
        pytest.raises(UserError, match="Another process trains in the run directory"),
        claimed(config.run_dir),
    ):
        pass
    process.kill()
    process.join()
    with claimed(config.run_dir):
        check(config)  # an empty directory with its lock is no run


def test_records_are_taken_back_to_the_checkpoint(tmp_path):
    (tmp_path / "groups").mkdir()
    for step in range(5):
        append_json(tmp_path / "metrics.jsonl", {"step": step})
        append_json(tmp_path / "evaluations.jsonl", {"step": step, "set": "held"})
        (tmp_path / f"groups/step-{step:06d}-0000.parquet").touch()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # the process died here
    (tmp_path / "groups/step-000004-0001.part").touch()  # and here
    record_checkpoint(tmp_path, 3, "there")
    record_checkpoint(tmp_path, 5, "there")
    rewind(tmp_path, 3)
    assert [record["step"] for record in read_json_lines(tmp_path / "checkpoints.jsonl")] == [3]
    assert [record["step"] for record in read_json_lines(tmp_path / "metrics.jsonl")] == [0, 1, 2]
    assert [record["step"] for record in read_json_lines(tmp_path / "evaluations.jsonl")] == [0, 1, 2]
    assert sorted(file.name for file in (tmp_path / "groups").iterdir()) == [
        f"step-{step:06d}-0000.parquet" for step in range(3)
    ]
