"""How an engine's process begins and ends; the coordinator is an object in the same process here."""

import os
from types import SimpleNamespace

import pytest

from srft_ray.errors import RunFailed
from srft_ray.rollout import engine_life
from srft_ray.rollout.engine_life import EngineLife
from srft_ray.sync.engine_deaths import EngineDeath, EngineDeaths, EngineProcess


class LocalCoordinator:
    """Calls `method.remote(…)` at once."""

    def __init__(self):
        self.reports = []
        self.deaths = EngineDeaths(lambda kind, message: self.reports.append(message))
        self.now = 0.0
        self.engine_started = SimpleNamespace(
            remote=lambda process: self.deaths.started(process, self._tick())
        )
        self.engine_died = SimpleNamespace(remote=lambda death: self.deaths.died(death, self._tick()))
        self.engine_problem = SimpleNamespace(remote=lambda: self.deaths.problem)

    def _tick(self):
        self.now += 1
        return self.now


class Exited(BaseException):
    """In the place of the process's end."""


@pytest.fixture
def coordinator(monkeypatch):
    context = SimpleNamespace(get_actor_id=lambda: "actor", get_node_id=lambda: "node")
    fake = SimpleNamespace(get=lambda value, timeout=None: value, get_runtime_context=lambda: context)
    monkeypatch.setattr(engine_life, "ray", fake)

    def leave(code):
        raise Exited(code)

    monkeypatch.setattr(os, "_exit", leave)
    return LocalCoordinator()


def test_an_error_is_told_and_ends_the_process(coordinator, capfd):
    life = EngineLife(coordinator)
    life.finished = 4
    with pytest.raises(Exited), life.ending_on_error():
        raise MemoryError("CUDA out of memory.\nTried to allocate 20 MiB")
    assert coordinator.reports == [
        "engine actor died: MemoryError: CUDA out of memory. Tried to allocate 20 MiB"
    ]
    assert "Traceback" in capfd.readouterr().err, "its log has the whole story"
    EngineLife(coordinator)  # with groups finished in between, one error is bad luck
    assert not coordinator.deaths.problem


def test_after_the_second_error_no_engine_starts(coordinator):
    for _ in range(2):
        life = EngineLife(coordinator)
        with pytest.raises(Exited), life.ending_on_error():
            raise ValueError("bad weights")
    with pytest.raises(RunFailed, match=r"same point \(ValueError: bad weights\).*bad weights") as caught:
        EngineLife(coordinator)
    assert "\n" not in str(caught.value)


def test_the_log_of_a_process_that_died_without_a_word_is_read(coordinator, tmp_path):
    log = tmp_path / "worker.err"
    log.write_text(
        "Loading\n" * 9000 + "Fatal Python error: Illegal instruction\n\nCurrent thread:\n  File x\n"
    )
    for pid in (1, 2):
        coordinator.deaths.started(EngineProcess("actor", "node", pid, str(log)), pid)
        if pid == 1:
            coordinator.deaths.died(
                EngineDeath(EngineProcess("actor", "node", 1, ""), "signal SIGILL", "", 0), 1.5
            )
    with pytest.raises(
        RunFailed, match=r"signal SIGILL .*rollout\.dtype=float32.*Illegal instruction \| Current"
    ):
        EngineLife(coordinator)


def test_a_log_on_another_node_is_not_read(coordinator, tmp_path):
    log = tmp_path / "worker.err"
    log.write_text("Fatal Python error: Aborted\n")
    coordinator.deaths.started(EngineProcess("actor", "elsewhere", 1, str(log)), 0.0)
    EngineLife(coordinator)
    assert "without a trace" in coordinator.reports[0]
