"""`ray start --head` and `ray job submit`, as the README says; a job that is stopped leaves a run that the next one continues."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ray.conftest import Run
from tests.ray.faults import KINDS, ROOT, processes

BIN = Path(sys.executable).parent


@pytest.fixture
def head(tmp_path):
    """A Ray head with the dashboard, started by the command; ports of its own, since another Ray may run here."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "disabled", "PATH": f"{BIN}:{environment['PATH']}", "SRFT_TEST": str(tmp_path), "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    subprocess.run(["ray", "start", "--head", "--num-cpus", "8", "--port", "6411", "--dashboard-port", "8311"], env=environment, check=True,
                   capture_output=True, timeout=120)
    yield environment
    subprocess.run(["ray", "stop", "--force"], env=environment, capture_output=True, timeout=120)


def job(environment, *words, timeout=400):
    return subprocess.run(["ray", "job", *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@pytest.mark.full
def test_quickstart_as_a_job_and_a_job_that_is_stopped(tmp_path, head):
    address = ("--address", "http://127.0.0.1:8311")
    train = ("--working-dir", ".", "--", "srft-ray", "train", "examples/quickstart.yaml", f"run.dir={tmp_path}")
    done = job(head, "submit", *address, *train, "trainer.steps=4")
    assert done.returncode == 0 and "finished 4 steps" in done.stdout, done.stdout + done.stderr
    assert json.loads((tmp_path / "quickstart/summary.json").read_text())["steps"] == 4
    stopped = ("run.name=stopped", "trainer.steps=20", "trainer.evaluate_every=0")
    assert job(head, "submit", *address, "--no-wait", "--submission-id", "first", *train, *stopped).returncode == 0
    run, deadline = tmp_path / "stopped", time.monotonic() + 180
    while not ((run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= 5):
        assert time.monotonic() < deadline, job(head, "logs", *address, "first").stdout
        time.sleep(0.2)
    assert job(head, "stop", *address, "first").returncode == 0
    deadline = time.monotonic() + 30
    while left := [pid for title in ("srft_ray", "srft-ray", *KINDS.values()) for pid in processes(f"SRFT_TEST={tmp_path}", title)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    steps = len(Run(run).metrics)
    assert 5 <= steps < 20 and (run / f"checkpoints/step-{steps}/complete.json").exists()
    done = job(head, "submit", *address, *train, *stopped)
    assert done.returncode == 0 and f"continuing after step {steps}" in done.stdout, done.stdout + done.stderr
    Run(run).check_exactly_once(steps=20, groups_per_step=16)
