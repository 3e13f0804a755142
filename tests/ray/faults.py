"""Runs that are disturbed: the command line as a user types it, whose processes are killed at chosen
moments."""

import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from srft_ray.observe.journal import read_json_lines
from tests.ray.conftest import Run, what

ROOT = Path(__file__).resolve().parents[2]
STEPS, GROUPS = 16, 4  # of the run that is disturbed
SMALL = (  # settings of a comparison on the quickstart's config
    "trainer.groups_per_step=4",
    "rollout.num_rollouts=4",
    "evaluation.samples=2",
    "evaluation.data.heldout.size=8",
    "evaluation.data.harder.size=4",
    "data.size=64",
)
KINDS = {
    "engine": "ray::MapWorker",
    "learner": "ray::RayTrainWorker",
    "coordinator": "ray::Coordinator",
    "verifier": "srft_ray.verify.supervisor",
}


def words(folder: Path, name: str, *more: str) -> tuple[object, ...]:
    """The arguments of a short run of the quickstart's config."""
    return (
        ROOT / "examples/quickstart.yaml",
        f"run.dir={folder}",
        f"run.name={name}",
        f"trainer.steps={STEPS}",
        f"trainer.groups_per_step={GROUPS}",
        "trainer.evaluate_every=0",
        "trainer.checkpoint_every=4",
        "trainer.max_failures=4",
        *more,
    )


class Nodes:
    """A Ray cluster of several local nodes whose processes carry the token; the head takes no learners or
    engines."""

    def __init__(self, token: str, **head: object) -> None:
        from ray.cluster_utils import Cluster

        name, _, value = token.partition("=")
        os.environ.update({name: value, "RAY_AUTH_MODE": "disabled"})
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False, **head}
        )
        del os.environ[name]
        self.token, self.joined = token, 0

    @property
    def address(self) -> str:
        return self.cluster.address

    @property
    def logs(self) -> str:
        """The folder of Ray's logs."""
        return self.cluster.head_node.get_logs_dir_path()

    def join(self, cpus: int = 3) -> object:
        """A node with room for one learner and one engine."""
        name, _, value = self.token.partition("=")
        os.environ[name] = value
        try:
            self.joined += 1  # an address of its own, so that the driver is on the head and nowhere else
            return self.cluster.add_node(
                num_cpus=cpus,
                resources={"learner": 1, "engine": 1},
                node_ip_address=f"127.0.0.{self.joined + 1}",
            )
        finally:
            del os.environ[name]

    def of(self, pid: int) -> object:
        """The node that the process runs on."""
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return next(
            node
            for node in self.cluster.worker_nodes
            if node.all_processes["raylet"][0].process.pid == parent
        )

    def kill(self, node: object) -> None:
        """SIGKILL of the node's raylet; Ray ends what it ran."""
        self.cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        self.cluster.shutdown()


def processes(token: str, title: str = "") -> list[int]:
    """Living processes whose environment holds the token and whose command line contains the title."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if (
                alive
                and token.encode() in (folder / "environ").read_bytes()
                and title in (folder / "cmdline").read_text().replace("\0", " ")
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return sorted(found)


class Watched:
    """A command in a process of its own; `token` marks every process that it starts."""

    command = "train"

    def __init__(self, run_dir: Path, *words: object, address: str | None = None, **environment: str) -> None:
        self.run_dir, self.words, self.token = run_dir, words, f"SRFT_TEST={run_dir}"
        self.environment = {
            key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"
        } | environment
        self.environment |= {"SRFT_TEST": str(run_dir), **({"RAY_ADDRESS": address} if address else {})}
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "srft_ray", self.command, *map(str, self.words)],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill_and_start(self) -> None:
        """SIGKILL of the command itself, which nothing must outlive; then the same command again."""
        self.process.kill()
        self.process.communicate()
        assert not self.left(90)
        self.start()

    def done(self) -> int:
        """Steps in the metrics."""
        return max(
            (record["step"] + 1 for record in read_json_lines(self.run_dir / "metrics.jsonl")), default=0
        )

    def wait_for_step(self, steps: int) -> None:
        """Until so many steps are done."""
        self.wait_until(lambda: self.done() >= steps)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 600) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, (
                f"{self.done()} steps are done after {timeout_s} s; {self.events()}"
            )
            time.sleep(0.02)

    def step_s(self) -> float:
        return statistics.median(r["time/step"] for r in read_json_lines(self.run_dir / "metrics.jsonl")[1:])

    def find(self, kind: str) -> list[int]:
        return processes(self.token, KINDS[kind])

    def kill(self, kind: str, rng: random.Random | None = None, number: int = signal.SIGKILL) -> int:
        """One process of the kind; waits for one if all are just starting again."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError, IndexError):
                pid = (rng or random.Random(0)).choice(self.find(kind))
                os.kill(pid, number)
                return pid
            time.sleep(0.1)
        raise AssertionError(f"no {kind} to kill")

    def finish(self, timeout_s: float = 300) -> tuple[int, str, str]:
        out, error = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, error

    def events(self) -> list[str]:
        return [
            f"{event['kind']}: {event['message']}" for event in read_json_lines(self.run_dir / "events.jsonl")
        ]

    def left(self, timeout_s: float = 60) -> list[str]:
        """Command lines of processes that outlive the command for so long."""
        deadline = time.monotonic() + timeout_s
        while (found := processes(self.token)) and time.monotonic() < deadline:
            time.sleep(0.2)
        return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in found]


def check_same(run: Run, undisturbed: Run, steps: int, exact: bool = True) -> None:
    """The same metrics, ledger and parameters; `exact` bit for bit, else to rounding."""
    assert len(run.metrics) == len(undisturbed.metrics) == steps
    order = ("step", "group_id", "sample")
    mine, theirs = (sorted(r.ledger, key=lambda row: [row[key] for key in order]) for r in (run, undisturbed))
    assert [[row[key] for key in order] for row in mine] == [[row[key] for key in order] for row in theirs]
    weights = [
        load_file(r.dir / f"checkpoints/step-{steps}/hf/model.safetensors") for r in (run, undisturbed)
    ]
    if exact:
        assert [what(record) for record in run.metrics] == [what(record) for record in undisturbed.metrics]
        assert mine == theirs
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    else:
        worst = max(abs(a["loss"] - b["loss"]) for a, b in zip(run.metrics, undisturbed.metrics, strict=True))
        print(f"losses differ by at most {worst:.1e}")
        assert worst <= 1e-5
        assert all(
            torch.allclose(weights[0][name], weights[1][name], rtol=0, atol=1e-4) for name in weights[1]
        )


def run_with_three_deaths(folder: Path, *more: str) -> Run:
    """A run with these settings in which engine, learner and coordinator were killed; it has every sequence
    once, and has left no process."""
    run = Watched(folder / "run", *words(folder, "run", *more))
    for step, kind in ((3, "engine"), (7, "learner"), (11, "coordinator")):
        run.wait_for_step(step)
        run.kill(kind)
        run.wait_for_step(step + 2)
    code, _, error = run.finish()
    assert code == 0 and not run.left(), error
    done = Run(run.run_dir)
    done.check_exactly_once(STEPS, GROUPS)
    return done
