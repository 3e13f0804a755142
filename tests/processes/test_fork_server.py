"""The fork server as Ray's raylet meets it: a command that stands for a worker, with its environment."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from srft_ray import UserError, fit, make_config
from srft_ray.fork_server import client
from srft_ray.fork_server.client import VARIABLE
from srft_ray.fork_server.start import ForkServer
from srft_ray.run.preloading import variables_for_commands
from tests.conftest import base_config

DEADLINE_S = 30.0
# Modules that take no time, and that Python does not import by itself.
BEFORE, AFTER = "colorsys", "wave"
ABOUT = """
import gc, json, os, resource, sys
print(json.dumps({
    "pid": os.getpid(),
    "parent": os.getppid(),
    "group": os.getpgid(0),
    "arguments": sys.argv[1:],
    "folder": os.getcwd(),
    "mask": os.umask(0),
    "cores": len(os.sched_getaffinity(0)),
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "environment": dict(os.environ),
    "imported": sorted({"colorsys", "wave", "client", "srft_ray"} & sys.modules.keys()),
    "path": sys.path[0],
    "name": __name__,
    "collects": gc.isenabled(),
    "input": sys.stdin.read(),
}))
"""


@pytest.fixture
def server():
    made = ForkServer([BEFORE], [AFTER], {"SRFT_IMPORT": "1"})
    yield made
    made.close()


@pytest.fixture
def script(tmp_path):
    """Writes a script, and gives the shell's words that Ray would run for it."""

    def write(server: ForkServer, text: str, *arguments: str) -> str:
        file = tmp_path / "script.py"
        file.write_text(text)
        words = [sys.executable, client.__file__, str(file), *arguments]
        return f"export {VARIABLE}={server.folder}; exec {' '.join(words)}"

    return write


def about(command, environment=None, **options):
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, input="words", **options
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def started(command, environment=None):
    """A worker that has written its number, and the process that stands for it."""
    stands = subprocess.Popen(["bash", "-c", command], env=environment, stdout=subprocess.PIPE, text=True)
    return stands, int(stands.stdout.readline())


def has_ended(pid):
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


WAITING = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)"


def test_a_worker_is_what_the_command_would_have_become(server, script, tmp_path):
    environment = os.environ | {"RAY_JOB_ID": "07"}
    command = f"ulimit -Sn 123; umask 027; {script(server, ABOUT, 'a', '--b=c')}"

    def begin():
        os.nice(3)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    found = about(command, environment, cwd=tmp_path, preexec_fn=begin)
    assert found["imported"] == [BEFORE, AFTER]
    assert found["arguments"] == ["a", "--b=c"] and found["input"] == "words"
    assert found["folder"] == str(tmp_path) == found["path"] and found["name"] == "__main__"
    assert found["nice"] == os.getpriority(os.PRIO_PROCESS, 0) + 3 and found["files"] == 123
    assert found["mask"] == 0o027 and found["cores"] == 1
    assert found["environment"]["RAY_JOB_ID"] == "07" and "SRFT_IMPORT" not in found["environment"]
    assert found["collects"] and found["group"] == os.getpgid(0)


def test_workers_with_one_environment_share_a_template(server, script):
    command = script(server, ABOUT)
    environment = os.environ | {"RAY_JOB_ID": "07"}
    first, second = about(command, environment), about(command, environment)
    later = about(command, environment | {"COLUMNS": "7"})
    other = about(command, environment | {"RAY_JOB_ID": "08"})
    assert first["parent"] == second["parent"] == later["parent"] != other["parent"]
    assert later["environment"]["COLUMNS"] == "7"
    assert other["environment"]["RAY_JOB_ID"] == "08" and other["imported"] == [BEFORE, AFTER]


NAMES = """
import sys
before = sorted({"ray.data", "ray"} & sys.modules.keys())
import ray
import numpy
print("{", '"imported":', str(before).replace("'", '"'), ', "task": "', ray.WorkerID.from_random().hex(),
      '", "numpy":', numpy.random.rand(), "}")
"""


def test_forks_that_have_imported_ray_are_different_processes(script):
    """Ray would take tasks of the same name for one."""
    server = ForkServer(["numpy"], ["ray.data"], {})
    command = script(server, NAMES)
    try:
        first, second = about(command), about(command)
    finally:
        server.close()
    assert first["imported"] == second["imported"] == ["ray", "ray.data"]
    assert first["task"] != second["task"] and first["numpy"] != second["numpy"]


def test_no_worker_is_forked_where_a_module_has_made_a_name(script, tmp_path):
    (tmp_path / "named.py").write_text("import ray\nray.WorkerID.from_random()\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        server = ForkServer([], ["named"], {})
    try:
        assert about(script(server, NAMES), environment)["imported"] == []
    finally:
        server.close()


def test_another_environment_gets_no_fork(server, script):
    """What the server has imported may have read the variable."""
    found = about(script(server, ABOUT), os.environ | {"HF_HOME": "/elsewhere"})
    assert found["imported"] == [] and found["environment"]["HF_HOME"] == "/elsewhere"


@pytest.mark.parametrize(
    ("end", "code"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 247), ("1 / 0", 1)]
)
def test_the_command_ends_as_the_worker_does(server, script, end, code):
    command = script(server, f"import atexit, os, sys\natexit.register(print, 'end')\n{end}")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == code
    assert ("ZeroDivisionError" in done.stderr) == (code == 1)
    # A worker ends as Python does, with all that was asked for the end.
    assert done.stdout == ("" if code == 247 else "end\n")


def test_who_kills_the_command_kills_the_worker(server, script):
    stands, pid = started(script(server, WAITING))
    stands.kill()
    assert has_ended(pid)


def sockets(server):
    return {path.name for path in server.folder.iterdir()}


def test_the_template_of_a_job_that_has_ended_becomes_that_of_the_next(script):
    server = ForkServer([BEFORE], [AFTER], {}, many_jobs=True)
    try:
        environment = os.environ | {"RAY_JOB_ID": "ff000000"}
        first = about(script(server, ABOUT), environment)
        before = sockets(server)
        assert has_ended(first["parent"])
        deadline = time.monotonic() + DEADLINE_S
        while len(sockets(server)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        prepared = sockets(server)
        assert prepared != before
        second = about(script(server, ABOUT), environment | {"RAY_JOB_ID": "00010000"})
        assert sockets(server) == prepared and second["imported"] == [BEFORE, AFTER]
    finally:
        server.close()


def test_workers_outlive_the_server_and_later_ones_need_none(server, script):
    stands, pid = started(script(server, WAITING))
    server.close()
    assert not server.folder.exists()
    found = about(script(server, ABOUT))
    assert found["imported"] == []
    os.kill(pid, 0)
    assert stands.poll() is None
    os.kill(pid, signal.SIGKILL)
    assert stands.wait(DEADLINE_S) == 1


def test_a_template_that_was_killed_is_made_again(server, script):
    command = script(server, ABOUT)
    first = about(command)
    os.kill(first["parent"], signal.SIGKILL)
    assert has_ended(first["parent"])
    second = about(command)
    assert second["imported"] == [BEFORE, AFTER] and second["parent"] != first["parent"]


def test_the_server_ends_with_its_owner(tmp_path):
    owner = (
        "import os, signal\n"
        "from srft_ray.fork_server.start import ForkServer\n"
        f"server = ForkServer([{BEFORE!r}], [], {{}})\n"
        "print(server._process.pid, server.folder, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", owner], capture_output=True, text=True)
    pid, folder = done.stdout.split()
    assert has_ended(int(pid))
    assert not Path(folder).exists()


COMMAND = [sys.executable, "-m", "srft_ray", "train"]


def in_warm(server):
    return os.environ | {VARIABLE: str(server.folder), "PYTHONPATH": os.pathsep.join(sys.path)}


def test_a_command_goes_on_in_a_fork(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        server = ForkServer([BEFORE], [AFTER], {})
    try:
        words = [*COMMAND, "missing.yaml"]
        done = subprocess.run(words, env=in_warm(server), cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("srft-ray: ") and "missing.yaml" in done.stderr
        assert len(list(server.folder.iterdir())) == 2  # the base and a template
    finally:
        server.close()
    # Without the server it is what it was.
    alone = subprocess.run(words, env=in_warm(server), cwd=tmp_path, capture_output=True, text=True)
    assert (alone.returncode, alone.stderr) == (done.returncode, done.stderr)


def test_a_command_passes_signals_on_and_ends_as_its_fork(server, tmp_path):
    (tmp_path / "cli.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "print(*sys.argv[1:], flush=True)\n"
        "time.sleep(600)"
    )
    lines = (
        "from srft_ray.commands import forked",
        f"forked.__file__ = {str(tmp_path / 'forked.py')!r}",
        f"raise SystemExit(forked.in_fork(['train', 'a.yaml'], {str(server.folder)!r}))",
    )
    for number, code in ((signal.SIGTERM, 7), (signal.SIGHUP, 128 + signal.SIGHUP)):
        process = subprocess.Popen(
            [sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "train a.yaml\n"
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == code


def test_a_run_that_is_refused_leaves_no_server(tmp_path, tiny_model):
    config = make_config(base_config(tmp_path, tiny_model, data={"path": str(tmp_path / "missing.jsonl")}))
    with pytest.raises(UserError, match=r"missing\.jsonl"):
        fit(config)
    assert not variables_for_commands()
