"""Storage that fails under a run: it says so in one sentence, ends or goes on as configured, and loses
nothing that was there."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from srft_ray import RunFailed, fit, make_config
from srft_ray.observe.journal import read_json_lines
from srft_ray.run.preflight import open_store
from tests.conftest import base_config, write_model
from tests.ray.conftest import Run
from tests.ray.faults import Nodes, Watched

pytestmark = pytest.mark.usefixtures("local_ray")


@contextlib.contextmanager
def small_disk(folder, kib):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def events(config):
    return [event["message"] for event in read_json_lines(config.run_dir / "events.jsonl")]


@pytest.mark.full
def test_checkpoints_that_cannot_be_written(tmp_path, tiny_model):
    """One fits (a checkpoint of the tiny model has about 1.4 MB), the second fails half-way, and the
    third."""
    with small_disk(tmp_path / "disk", 2000) as disk:
        config = make_config(
            base_config(
                tmp_path,
                tiny_model,
                trainer={
                    "steps": 8,
                    "checkpoint_every": 2,
                    "checkpoint_path": str(disk),
                    "max_checkpoint_failures": 1,
                },
            )
        )
        with pytest.raises(
            RunFailed,
            match=r"The checkpoint of step 6 could not be written to .*No space left.* continues from step 2",
        ):
            fit(config)
        assert (
            "checkpoint of step 4 could not be written" in events(config)[0]
            and "failure 1 of 1" in events(config)[0]
        )
        store = open_store(config)
        assert store.steps() == [2] and store.newest_whole() == 2
        run = Run(config.run_dir)
        assert [record["step"] for record in run.metrics] == list(range(6))
        subprocess.run(["mount", "-o", "remount,size=20000k", disk], check=True)
        fit(config)
        Run(config.run_dir).check_exactly_once(steps=8, groups_per_step=4)


@pytest.mark.full
def test_damaged_checkpoints_cost_their_steps_only(tmp_path, tiny_model):
    """Also those of a run that had finished."""
    config = make_config(base_config(tmp_path, tiny_model, trainer={"steps": 5, "checkpoint_every": 2}))
    fit(config)
    whole = Run(config.run_dir)
    for name in ("step-4/state-00000-00000.safetensors", "step-5/hf/model.safetensors"):
        file = config.run_dir / "checkpoints" / name
        file.write_bytes(file.read_bytes()[:1000])
    fit(config)
    assert "step 5 is damaged (hf/model.safetensors has 1000 of" in events(config)[0]
    assert "step 4 is damaged (state-00000-00000.safetensors has 1000 of" in events(config)[1]
    again = Run(config.run_dir)
    again.check_exactly_once(steps=5, groups_per_step=4)
    assert [record["loss"] for record in again.metrics] == [record["loss"] for record in whole.metrics]


@pytest.mark.full
def test_a_full_disk_for_the_ledger(tmp_path, tiny_model):
    with small_disk(tmp_path / "runs", 700) as disk:
        config = make_config(
            base_config(
                tmp_path,
                tiny_model,
                trainer={
                    "steps": 200,
                    "checkpoint_every": 2,
                    "keep_checkpoints": 1,
                    "checkpoint_path": str(tmp_path / "elsewhere"),
                    "max_failures": 0,
                },
            )
        )
        with pytest.raises(RunFailed, match=r"cannot be recorded in .*No space left on device.*: make room"):
            fit(config)
        done = open_store(config).latest()
        run = Run(config.run_dir)
        assert (
            done >= 2 and len(run.metrics) >= done and {row["step"] for row in run.ledger} >= set(range(done))
        )
        subprocess.run(["mount", "-o", "remount,size=60000k", disk], check=True)
        config.trainer.steps = 200
        fit(config)
        Run(config.run_dir).check_exactly_once(steps=200, groups_per_step=4)


@pytest.mark.full
def test_an_object_store_that_is_too_small_spills(tmp_path):
    """Versions of 60 MB through an object store of 75 MB."""
    model = write_model(tmp_path / "model", hidden=512, layers=9)
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(
            base_config(
                tmp_path,
                model,
                trainer={"steps": 5},
                rollout={
                    "num_rollouts": 2,
                    "max_new_tokens": 32,
                    "max_staleness": 1,
                    "transport_chunk_mb": 8,
                },
            )
        )
    )
    nodes = Nodes(f"SRFT_TEST={tmp_path / 'runs/run'}", object_store_memory=75 * 2**20, num_cpus=8)
    run = Watched(
        tmp_path / "runs/run", tmp_path / "config.yaml", address=nodes.address, RAY_AUTH_MODE="disabled"
    )
    try:
        code, _, error = run.finish()
        spilled = "".join(path.read_text(errors="ignore") for path in Path(nodes.logs).glob("raylet*.*"))
    finally:
        nodes.shutdown()
    assert code == 0, error
    assert "Spilled" in spilled
    Run(run.run_dir).check_exactly_once(steps=5, groups_per_step=4)
