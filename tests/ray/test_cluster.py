"""A cluster that is there: `ray job submit`, with relative paths; `ray job stop`; metrics that Ray exports; a
node with folders of its own."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from srft_ray.observe.journal import read_json_lines
from srft_ray.observe.loggers import RAY_GAUGES
from tests.conftest import base_config
from tests.ray.conftest import Run
from tests.ray.faults import KINDS, ROOT, processes

JUDGE = "def judge(response, reference, metadata):\n    return len(response) % 2\n"
MINE = "from algorithms import SRFT\n\n\nclass Mine(SRFT):\n    name = 'mine'\n"
HIDE = 'mount -t tmpfs none "$HIDDEN" && exec "$@"'  # a node of its own that sees an empty directory there


def free_ports(number):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


class Cluster:
    """A head node on this machine, and more nodes; each a process that ends its own."""

    def __init__(self):
        self.gcs, self.client, self.dashboard, self.metrics, *self.agents = free_ports(8)
        self.temp = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: its sockets have a limited name
        outside = {
            key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_TMPDIR")
        }
        self.environment = {
            **outside,
            "RAY_AUTH_MODE": "disabled",
            "RAY_metrics_report_interval_ms": "500",
            "PYTHONPATH": str(ROOT),
            "SRFT_TEST": self.temp,
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self.nodes = [
            self.start(
                "--head",
                f"--port={self.gcs}",
                f"--ray-client-server-port={self.client}",
                f"--dashboard-port={self.dashboard}",
                f"--metrics-export-port={self.metrics}",
                f"--temp-dir={self.temp}",
                "--num-cpus=6",
            )
        ]

    def start(self, *options, before=(), **variables):
        agent = f"--dashboard-agent-listen-port={self.agents.pop()}"
        return subprocess.Popen(
            [*before, "ray", "start", "--block", "--disable-usage-stats", agent, *options],
            stdout=subprocess.DEVNULL,
            env={**self.environment, **variables},
            start_new_session=True,
        )

    def job(self, *words, cwd, options=()):
        return self.call("submit", *options, "--working-dir=.", "--", *words, cwd=cwd)

    def call(self, command, *words, cwd=ROOT):
        """`ray job`, in a process of its own."""
        return subprocess.Popen(
            ["ray", "job", command, f"--address=http://127.0.0.1:{self.dashboard}", *map(str, words)],
            cwd=cwd,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def read(self, port, path):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5).read().decode()
        except OSError:
            return ""

    def wait_for(self, text, port, path, timeout_s=90):
        deadline = time.time() + timeout_s
        while not re.search(text, self.read(port, path)):
            assert time.time() < deadline, f"no {text} at {path}"
            time.sleep(0.5)

    def close(self):
        for node in reversed(self.nodes):
            node.terminate()
        for node in self.nodes:
            node.wait(60)
        shutil.rmtree(self.temp, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster():
    cluster, deadline = Cluster(), time.monotonic() + 120
    try:
        cluster.wait_for("ray_version", cluster.dashboard, "api/version")
        while cluster.job("true", cwd=Path(cluster.temp)).wait(60):  # until the node's agent takes jobs
            assert time.monotonic() < deadline, "no job can be submitted"
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def project(tmp_path, tiny_model):
    """A directory to submit, whose config names everything relative to it but the run's directory."""
    folder = tmp_path / "project"
    shutil.copytree(tiny_model, folder / "model")
    (folder / "judge.py").write_text(JUDGE)
    (folder / "mine.py").write_text(MINE)
    config = base_config(
        folder,
        Path("model"),
        verifier={"path": "judge.py:judge"},
        algorithm={"path": "mine.py:Mine"},
        trainer={"steps": 40},
    )
    config["data"]["path"], config["run"]["dir"] = "data.jsonl", str(tmp_path / "runs")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.full
def test_job_with_relative_paths_exports_its_metrics(cluster, project, tmp_path):
    job, exported = cluster.job("srft-ray", "train", "config.yaml", cwd=project), ""
    wanted = {f"ray_srft_ray_{name}" for name, (key, _) in RAY_GAUGES.items() if key != "queue/depth"}
    while job.poll() is None and not all(f"{name}{{" in exported for name in wanted):
        exported = cluster.read(cluster.metrics, "metrics")
        time.sleep(0.3)
    out, _ = job.communicate(timeout=240)
    assert job.returncode == 0 and "finished 40 steps" in out, out
    lines = [line for line in exported.splitlines() if line.startswith("ray_srft_ray_")]
    assert {line.partition("{")[0] for line in lines} >= wanted, lines
    assert all('run="run"' in line for line in lines)
    run = Run(tmp_path / "runs/run")
    run.check_exactly_once(steps=40, groups_per_step=4)
    assert {row["reward"] for row in run.rollouts} == {0.0, 1.0}, "the project's own verifier judges"
    assert all(
        0 < record["utilization/engine"] <= 1 and 0 < record["utilization/learner"] <= 1
        for record in run.metrics
    )


@pytest.mark.full
def test_quickstart_as_a_job_and_a_job_that_is_stopped(cluster, tmp_path):
    train = ("srft-ray", "train", "examples/quickstart.yaml", f"run.dir={tmp_path}")
    job = cluster.job(*train, "trainer.steps=4", cwd=ROOT)
    out, _ = job.communicate(timeout=400)
    assert job.returncode == 0 and "finished 4 steps" in out, out
    assert json.loads((tmp_path / "quickstart/summary.json").read_text())["steps"] == 4
    stopped = ("run.name=stopped", "trainer.steps=20", "trainer.evaluate_every=0")
    assert (
        cluster.job(*train, *stopped, cwd=ROOT, options=("--no-wait", "--submission-id=first")).wait(60) == 0
    )
    run, deadline = tmp_path / "stopped", time.monotonic() + 180
    while len(read_json_lines(run / "metrics.jsonl")) < 5:
        assert time.monotonic() < deadline, cluster.call("logs", "first").communicate(timeout=60)
        time.sleep(0.2)
    assert cluster.call("stop", "first").wait(120) == 0
    deadline = time.monotonic() + 30
    while left := [
        pid
        for title in ("srft_ray", "srft-ray", *KINDS.values())
        for pid in processes(f"SRFT_TEST={cluster.temp}", title)
    ]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    steps = len(Run(run).metrics)
    assert 5 <= steps < 20 and (run / f"checkpoints/step-{steps}/complete.json").exists()
    job = cluster.job(*train, *stopped, cwd=ROOT)
    out, _ = job.communicate(timeout=400)
    assert job.returncode == 0 and f"continuing after step {steps}" in out, out
    Run(run).check_exactly_once(steps=20, groups_per_step=16)


@pytest.mark.full
@pytest.mark.parametrize("key", ["run.dir", "trainer.checkpoint_path"])
def test_a_node_with_a_folder_of_its_own_is_named(cluster, project, tmp_path, key):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    if subprocess.run(
        ["unshare", "-m", "sh", "-c", HIDE, "sh", "true"], env={**cluster.environment, "HIDDEN": str(hidden)}
    ).returncode:
        pytest.skip("mount namespaces are not allowed here")
    cluster.nodes.append(
        cluster.start(
            f"--address=127.0.0.1:{cluster.gcs}",
            "--num-cpus=2",
            before=("unshare", "-m", "sh", "-c", HIDE, "sh"),
            HIDDEN=str(hidden),
        )
    )
    cluster.wait_for(r'"alive": ?2|ALIVE[^]]*ALIVE', cluster.dashboard, "api/v0/nodes")
    out, _ = cluster.job("srft-ray", "train", "config.yaml", f"{key}={hidden}", cwd=project).communicate(
        timeout=120
    )
    assert (
        f"of the Ray cluster does not see {key}={hidden}" in out
        and "put it on storage that all nodes see" in out
        and "Traceback" not in out
    ), out
    assert not (hidden / "run").exists() and not list(hidden.glob(".seen*"))
