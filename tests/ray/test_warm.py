"""`srft-ray warm`, and the workers of its Ray, as a user meets them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.ray.conftest import Run, what
from tests.ray.faults import words

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3
LOOK = """
import json, os, sys
import ray
from srft_ray.config.schema import ClusterSection
from srft_ray.run.cluster import start_ray

class Worker:
    def __init__(self):
        self.before = set(sys.modules)

    def look(self):
        names = ("torch", "ray.data", "vllm.v1.engine.llm_engine", "srft_ray")
        return [name in self.before for name in names]

    def variables(self, name):
        return [os.environ.get(name), os.environ.get("OF_THE_DRIVER")]

    def can_start_another_ray(self):
        from ray._private.auto_init_hook import enable_auto_connect

        return enable_auto_connect

assert not start_ray(ClusterSection(), 1)
worker = ray.remote(Worker).remote()
found = ray.get(worker.look.remote())
assert not ray.get(worker.can_start_another_ray.remote())
for name, is_fork in (("SRFT_X", True), ("OTHER", False)):
    os.environ["OF_THE_DRIVER"] = "no"
    variables = {"env_vars": {name: "a ${HOME} ${MISSING}b $"}}
    worker = ray.remote(Worker).options(runtime_env=variables).remote()
    assert ray.get(worker.variables.remote(name)) == [f"a {os.environ['HOME']} b $", None]
    assert any(ray.get(worker.look.remote())) == is_fork
print(json.dumps({"imported": found, "folder": os.environ["SRFT_RAY_FORK_SERVER"]}))
"""


def warm(*program):
    command = [sys.executable, "-m", "srft_ray", "warm", *program]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_commands_share_a_ray_whose_workers_are_forks(tmp_path):
    train = [
        " ".join(
            map(str, (sys.executable, "-m srft_ray train", *words(tmp_path, name), f"trainer.steps={STEPS}"))
        )
        for name in ("one", "two")
    ]
    look = tmp_path / "look.py"
    look.write_text(LOOK)
    done = warm("bash", "-c", f"{train[0]} && {train[1]} && {sys.executable} {look} && exit 7")
    assert done.returncode == 7, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["imported"] == [True, True, True, False]
    assert not Path(found["folder"]).exists()
    one, two = (Run(tmp_path / name) for name in ("one", "two"))
    one.check_exactly_once(STEPS, 4)
    assert [what(record) for record in one.metrics] == [what(record) for record in two.metrics]


def test_sigterm_reaches_the_program_and_everything_ends(tmp_path):
    program = (
        f"trap 'exit 5' TERM; echo $SRFT_RAY_FORK_SERVER > {tmp_path}/folder; while :; do sleep 0.1; done"
    )
    command = [sys.executable, "-m", "srft_ray", "warm", "bash", "-c", program]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    while not (tmp_path / "folder").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 5
    assert not Path((tmp_path / "folder").read_text().strip()).exists()


def test_a_program_that_is_none_is_refused_before_anything_starts():
    done = warm("no-such-program")
    assert done.returncode == 2
    assert done.stderr == "srft-ray: no-such-program is no program that can be run.\n"
