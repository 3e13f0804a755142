"""Deaths of engines that repeat at the same point are told apart from bad luck."""

import os
import signal
import subprocess
import sys
import time

import pytest

from srft_ray.rollout.engine_life import excerpt, fatal_signal
from srft_ray.sync.engine_deaths import EngineDeath, EngineDeaths, EngineProcess

OUT_OF_MEMORY = "OutOfMemoryError: CUDA out of memory. Tried to allocate {} MiB."


class Engines:
    """Starts and deaths of engines, one after the other, at times a second apart."""

    def __init__(self):
        self.reports = []
        self.deaths = EngineDeaths(lambda kind, message: self.reports.append(message))
        self.now = 0.0
        self.pid = 0

    def start(self, engine="a"):
        self.now += 1
        self.pid += 1
        process = EngineProcess(engine, "node", self.pid, "")
        self.before = self.deaths.started(process, self.now)
        return process

    def die(self, process, cause="", finished=0, log=""):
        self.now += 1
        self.deaths.died(EngineDeath(process, cause, log, finished), self.now)
        return self.deaths.problem


@pytest.fixture
def engines():
    return Engines()


def test_the_second_start_without_a_finished_group_is_the_last(engines):
    assert not engines.die(engines.start(), "signal SIGILL")
    problem = engines.die(engines.start(), "ValueError: other", log="line 1 | line 2")
    assert "ValueError: other" in problem and problem.endswith("line 1 | line 2") and "\n" not in problem
    assert len(engines.reports) == 2


def test_the_same_cause_twice_at_the_same_version_is_the_last(engines):
    """Although the engine finished other groups in between: the group that it dies of comes again."""
    assert not engines.die(engines.start(), OUT_OF_MEMORY.format(20), finished=3)
    assert not engines.die(engines.start(), "RuntimeError: other", finished=3)
    assert "out of memory" in engines.die(engines.start(), OUT_OF_MEMORY.format(22), finished=3)


def test_a_run_that_goes_on_forgets(engines):
    for _ in range(5):
        assert not engines.die(engines.start(), OUT_OF_MEMORY.format(20), finished=3)
        engines.deaths.published()


def test_engines_that_die_together_share_one_piece_of_bad_luck(engines):
    processes = [engines.start(engine) for engine in "abcd"]
    for process in processes:
        assert not engines.die(process, "OSError: disk", finished=1)
    assert "disk" in engines.die(engines.start("a"), "OSError: disk", finished=1)


def test_kills_from_outside_are_bad_luck_if_the_engine_works_in_between(engines):
    for _ in range(5):
        process = engines.start()
        engines.deaths.finished("a", 2)
        assert not engines.die(process)
    assert not engines.die(engines.start())
    assert "without a trace" in engines.die(engines.start()), "a third start without a finished group"


def test_a_death_that_nobody_told_of_is_known_at_the_next_start(engines):
    first = engines.start()
    second = engines.start()
    assert engines.before == first
    engines.die(first)
    third = engines.start()
    assert engines.before == second and third.pid == 3
    engines.die(second, "RuntimeError: x", finished=1)
    engines.die(third, "RuntimeError: y", finished=1)
    engines.start()
    assert engines.before is None


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("os.kill(os.getpid(), signal.SIGILL)", "signal SIGILL (an instruction that this CPU lacks"),
        ("os.abort()", "signal SIGABRT (Aborted)"),
        ("import ctypes; ctypes.string_at(0)", "signal SIGSEGV (Segmentation fault)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", ""),
    ],
)
def test_the_log_names_the_signal(code, wanted):
    script = f"import faulthandler, os, signal; faulthandler.enable()\ndef f():\n    {code}\nf()"
    log = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stderr
    found = fatal_signal("Loading weights\n" + log)
    assert found.startswith(wanted) and bool(found) == bool(wanted)
    if wanted:
        assert excerpt("Loading weights\n" + log).startswith("Fatal Python error")


def test_the_last_lines_of_a_log_are_one_short_line():
    log = "first\n\n" + "\n".join(f"line {n} {'x' * 500}" for n in range(9))
    assert excerpt(log).count(" | ") == 3 and len(excerpt(log)) < 700
    assert "line 8" in excerpt(log) and "line 4" not in excerpt(log)


ACTOR = """
import multiprocessing, os, sys, time
from srft_ray.rollout.engine_process import EndWithActor

def core(actor_pid, told):
    # As vLLM with tensor parallelism: the core, a child of the actor, starts the process that is told.
    worker = multiprocessing.get_context("fork").Process(target=work, args=(actor_pid, told))
    worker.start()
    time.sleep(600)

def work(actor_pid, told):
    EndWithActor().end_with_actor(actor_pid)
    told.put((os.getppid(), os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    direct = context.Process(target=work, args=(os.getpid(), told))
    direct.start()
    _, alone = told.get()
    context.Process(target=core, args=(os.getpid(), told)).start()
    print(alone, *told.get(), flush=True)
    time.sleep(600)
"""


def test_vllms_processes_end_with_an_actor_that_is_killed():
    actor = subprocess.Popen([sys.executable, "-c", ACTOR], stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in actor.stdout.readline().split()]
    assert len(pids) == 3
    actor.send_signal(signal.SIGKILL)
    actor.wait()
    deadline = time.monotonic() + 20
    left = pids
    while left and time.monotonic() < deadline:
        left = [pid for pid in left if is_alive(pid)]
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
