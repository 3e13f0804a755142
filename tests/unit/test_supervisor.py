"""What the driver's supervisor kills: a process, never a number that another process has meanwhile."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from srft_ray.run.supervisor import STOP_TIMEOUT_S, RunSupervisor
from srft_ray.sync.processes import Process, start_time

LONG_S = 2 * STOP_TIMEOUT_S


@pytest.fixture
def controller() -> Iterator[Process]:
    with subprocess.Popen(["sleep", "60"]) as child:
        yield Process(child.pid, start_time(child.pid))
        child.kill()


@pytest.fixture
def supervisor() -> RunSupervisor:
    return RunSupervisor(coordinator=None, report=print, silence_s=1.0, absence_s=600.0)


def test_a_number_that_another_process_has_now_is_left_alone(controller: Process):
    earlier = replace(controller, started=controller.started - 1)
    assert not earlier.is_alive and not earlier.kill() and controller.is_alive
    assert controller.kill()


def test_nobody_is_killed_where_no_process_is_known():
    assert not Process().kill()


def test_a_stop_without_learners_ends_the_controller_and_is_the_cause(
    supervisor: RunSupervisor, controller: Process
):
    supervisor.decide(LONG_S, controller, stop="SIGTERM", engine_problem="")
    supervisor.decide(LONG_S, controller, stop="SIGTERM", engine_problem="")
    assert supervisor.stopped and not supervisor.problem


def test_an_error_of_the_learners_is_no_clean_stop(supervisor: RunSupervisor, controller: Process):
    """Ray Train raised it before the supervisor had to do anything, although a stop was asked for."""
    supervisor.decide(0.0, controller, stop="SIGTERM", engine_problem="")
    assert not supervisor.stopped and controller.is_alive
    supervisor.decide(LONG_S, Process(), stop="SIGTERM", engine_problem="")
    assert not supervisor.stopped


def test_engines_that_would_die_again_end_the_run(supervisor: RunSupervisor, controller: Process):
    supervisor.decide(0.0, controller, stop="", engine_problem="An engine died repeatedly.")
    assert supervisor.problem == "An engine died repeatedly." and not supervisor.stopped
