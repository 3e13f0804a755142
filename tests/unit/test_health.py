"""Engines that hang are found by what they do not say."""

import time

import pytest
from ray.exceptions import RayError

from srft_ray.sync import health
from srft_ray.sync.health import HealthMonitor, Heartbeat


def heartbeat(engine="a", pid=1, steps=0, in_flight=1, finished=0, generation=0):
    return Heartbeat(engine, "node", pid, steps, in_flight, finished, generation)


@pytest.fixture
def monitor():
    reports = []
    killed = []
    made = HealthMonitor(10.0, lambda kind, message: reports.append(message), killed.append)
    made.reports = reports
    made.killed = killed
    return made


def test_silence_and_standstill_are_hangs(monitor):
    monitor.heartbeat(heartbeat("silent", steps=1), now=0.0)
    for now in range(12):
        monitor.heartbeat(heartbeat("works", steps=now), now=float(now))
        monitor.heartbeat(heartbeat("idle", in_flight=0), now=float(now))
        monitor.heartbeat(heartbeat("stuck", steps=7), now=float(now))
        assert not monitor.problems(now) or now > 10
    assert monitor.problems(11.0) == {
        "silent": "said nothing for 11 s",
        "stuck": "made no progress for 11 s with 1 blocks of rollouts",
    }


def test_a_hung_engine_is_killed_once(monitor):
    monitor.heartbeat(heartbeat(pid=7), now=0.0)
    monitor.check(10.0)
    assert monitor.killed == [] and monitor.reports == []
    monitor.check(11.0)
    monitor.check(12.0)
    assert monitor.killed == [heartbeat(pid=7)]
    assert monitor.reports == ["engine a said nothing for 11 s (rollout.stall_timeout_s=10): it is killed"]


def test_a_killed_engine_has_time_to_load(monitor):
    """Between its death and its new process's first heartbeat nothing is asked of it; then it counts."""
    monitor.heartbeat(heartbeat(), now=0.0)
    monitor.engines["a"].was_killed()
    assert monitor.problems(500.0) == {} and monitor.metrics(0, now=500.0)["engines"] == 1.0
    monitor.heartbeat(heartbeat(pid=2, in_flight=0), now=510.0)
    assert monitor.problems(515.0) == {} and monitor.problems(521.0) == {"a": "said nothing for 11 s"}


def test_a_new_process_is_a_restart(monitor):
    monitor.heartbeat(heartbeat(finished=4), now=0.0)
    monitor.heartbeat(heartbeat(pid=2, finished=0), now=30.0)
    assert monitor.problems(35.0) == {} and "died and was started again" in monitor.reports[0]
    now = time.monotonic()
    monitor.heartbeat(heartbeat(pid=2, finished=3), now)
    assert monitor.metrics(groups_taken=5, now=now) == {"engines": 1.0, "queue/depth": 2.0}
    monitor.restart(generation=1)
    assert monitor.metrics(0, now)["engines"] == 0.0


def test_a_silent_engine_is_not_counted(monitor):
    monitor.heartbeat(heartbeat(), now=0.0)
    assert monitor.metrics(0, now=9.0)["engines"] == 1.0
    assert monitor.metrics(0, now=11.0)["engines"] == 0.0


def test_engines_of_an_earlier_start_are_not_heard(monitor):
    monitor.heartbeat(heartbeat("old", generation=1), now=0.0)
    monitor.restart(generation=2)
    monitor.heartbeat(heartbeat("old", generation=1), now=1.0)
    monitor.heartbeat(heartbeat("new", generation=2), now=1.0)
    assert set(monitor.engines) == {"new"}


def test_of_more_engines_each_sends_fewer_heartbeats(monitor):
    """100 a second in all, but at least 20 of each in the time after which it is killed."""
    monitor.timeout_s = 300.0
    found = {}
    for number in range(3000):
        monitor.heartbeat(heartbeat(str(number)), now=0.0)
        found[number + 1] = monitor.interval_s
    assert [found[engines] for engines in (1, 100, 300, 1000, 3000)] == [1.0, 1.0, 3.0, 10.0, 15.0]
    # Each counts as alive for as long as two of its heartbeats take.
    assert monitor.metrics(0, now=29.0)["engines"] == 3000.0
    assert monitor.metrics(0, now=31.0)["engines"] == 0.0
    monitor.timeout_s = 40.0
    assert monitor.interval_s == 2.0
    monitor.timeout_s = 10.0
    assert monitor.interval_s == 1.0


def test_an_engine_speaks_again_when_the_coordinator_wants_it(monkeypatch):
    pauses = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    class Coordinator:
        answers = iter([2.5, RayError("it died"), 1.0])

        class heartbeat:
            @staticmethod
            def remote(sent: Heartbeat) -> object:
                return next(Coordinator.answers)

    def get(answer: object) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(health.time, "sleep", sleep)
    monkeypatch.setattr(health.ray, "get", get)
    with pytest.raises(KeyboardInterrupt):
        health.send_heartbeats(Coordinator, heartbeat)
    assert pauses == [2.5, 2.5, 1.0]


def test_finished_groups_are_the_sum_over_engines_and_their_processes(monitor):
    for engine, pid, finished in (
        ("a", 1, 4),
        ("b", 2, 1),
        ("a", 1, 6),
        ("a", 3, 0),
        ("b", 2, 2),
        ("a", 3, 5),
    ):
        monitor.heartbeat(heartbeat(engine, pid=pid, finished=finished), now=0.0)
        assert monitor.finished == sum(health.finished for health in monitor.engines.values())
    assert monitor.finished == 6 + 5 + 2
    monitor.restart(generation=0)
    assert monitor.finished == 0
