"""Engines that hang are found by what they do not say."""

import asyncio
import time

import pytest

from srft_ray.sync.health import HealthMonitor, Heartbeat


def heartbeat(engine="a", pid=1, steps=0, in_flight=1, finished=0):
    return Heartbeat(engine, "node", pid, steps, in_flight, finished)


@pytest.fixture
def watch():
    reports = []
    made = HealthMonitor(10.0, lambda kind, message: reports.append(message))
    made.reports, made._task = reports, object()  # no look of its own
    return made


def test_silence_and_standstill_are_hangs(watch):
    watch.beat(heartbeat("silent", steps=1), now=0.0)
    for now in range(12):
        watch.beat(heartbeat("works", steps=now), now=float(now))
        watch.beat(heartbeat("idle", in_flight=0), now=float(now))
        watch.beat(heartbeat("stuck", steps=7), now=float(now))
        assert not watch.hung(now) or now > 10
    assert watch.hung(11.0) == {
        "silent": "said nothing for 11 s",
        "stuck": "made no progress for 11 s with 1 blocks of rollouts",
    }


def test_a_killed_engine_has_time_to_load(watch):
    """Between its death and its new process's first heartbeat nothing is asked of it; then it counts again."""
    watch.beat(heartbeat(), now=0.0)
    watch.engines["a"].heard = watch.engines["a"].moved = float("inf")  # as after a kill
    assert watch.hung(500.0) == {} and watch.figures(0)["engines"] == 1.0
    watch.beat(heartbeat(pid=2, in_flight=0), now=510.0)
    assert watch.hung(515.0) == {} and watch.hung(521.0) == {"a": "said nothing for 11 s"}


def test_a_new_process_is_a_restart(watch):
    watch.beat(heartbeat(finished=4), now=0.0)
    watch.beat(heartbeat(pid=2, finished=0), now=30.0)
    assert watch.hung(35.0) == {} and "died and was started again" in watch.reports[0]
    watch.beat(heartbeat(pid=2, finished=3), now=time.monotonic())
    assert watch.figures(taken=5) == {"engines": 1.0, "queue/depth": 2.0}
    watch.restart()
    assert watch.figures(0)["engines"] == 0.0


def test_the_gate_forgets_and_admits_nobody_until_the_learners_publish_again():
    from srft_ray.sync.coordinator import Coordinator

    async def story():
        coordinator = Coordinator(max_staleness=1)
        with pytest.raises(TimeoutError, match="waited 0 s for policy version 0; the newest is -1"):
            await coordinator.admit(0, timeout_s=0.01)
        with pytest.raises(RuntimeError, match="restarted while the learners started"):
            await coordinator.start()
        await coordinator.restart(0)
        assert await coordinator.admit(1, timeout_s=1.0) == 0 and await coordinator.start() == 0
        with pytest.raises(RuntimeError, match="0 of 2 pieces of version 1"):
            await coordinator.publish(1, 2)
        with pytest.raises(TimeoutError):
            await coordinator.admit(2, timeout_s=0.01)
        await coordinator.publish(1, 0)
        assert await coordinator.admit(2, timeout_s=1.0) == 1
        await coordinator.restart(5)
        with pytest.raises(TimeoutError):
            await coordinator.admit(1, timeout_s=0.01)

    asyncio.run(story())


def test_who_asks_the_learners_to_leave():
    from srft_ray.sync.coordinator import Coordinator

    async def story():
        coordinator = Coordinator(0)
        assert await coordinator.leave_request() == ""
        assert not await coordinator.leave("a change to 2 learners", timeout_s=0.01)
        assert await coordinator.leave_request() == "a change to 2 learners"
        waiting = asyncio.create_task(coordinator.leave("a change to 3 learners", timeout_s=5.0))
        await asyncio.sleep(0)
        await coordinator.left()
        assert await waiting and await coordinator.leave_request() == ""
        await coordinator.stop("SIGTERM")
        await coordinator.left()
        await coordinator.restart(4)
        assert await coordinator.leave_request() == "SIGTERM" and await coordinator.ended() == (
            "SIGTERM",
            "",
        ), "a stop is for good"

    asyncio.run(story())
