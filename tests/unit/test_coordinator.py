"""The parts of the coordinator, stepped by hand, and the actor's class without Ray."""

import asyncio

import pytest

from srft_ray.sync import coordinator as module
from srft_ray.sync.coordinator import Coordinator
from srft_ray.sync.learners import LearnerPresence, LearnerRequests
from srft_ray.sync.versions import UNKNOWN, PublishedVersions


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_a_group_starts_within_the_staleness_bound(max_staleness):
    versions = PublishedVersions(max_staleness)
    versions.restart(0)
    for version in range(4):
        admitted = [step for step in range(10) if versions.admits(step, exact=False)]
        assert admitted == list(range(version + max_staleness + 1))
        exactly = [step for step in range(10) if versions.admits(step, exact=True)]
        assert exactly == list(range(version + 1))
        versions.publish(version + 1, 0)


def test_nobody_starts_before_the_checkpoint_is_published():
    versions = PublishedVersions(1)
    versions.restart(5)
    assert versions.start_step == 5 and versions.newest == UNKNOWN
    assert not versions.admits(5, exact=False) and not versions.admits(0, exact=False)
    versions.add_piece(0, "weights")
    versions.publish(5, 1)
    assert versions.admits(6, exact=False) and not versions.admits(7, exact=False)
    assert versions.weights() == (5, ["weights"])


def test_a_version_is_published_whole_or_not_at_all():
    versions = PublishedVersions(0)
    versions.restart(0)
    versions.add_piece(1, "second")
    with pytest.raises(RuntimeError, match="1 of 2 pieces of version 1 are here"):
        versions.publish(1, 2)
    assert versions.weights() == (0, [])
    versions.add_piece(0, "first")
    versions.add_piece(1, "second again")
    versions.publish(1, 2)
    assert versions.weights() == (1, ["first", "second again"])
    # Pieces of one version never become a part of the next.
    with pytest.raises(RuntimeError, match="0 of 2 pieces of version 2"):
        versions.publish(2, 2)


def test_a_coordinator_without_memory_admits_nobody():
    versions = PublishedVersions(3)
    assert not versions.admits(0, exact=False)
    with pytest.raises(RuntimeError, match="restarted while the learners started"):
        _ = versions.start_step
    versions.add_piece(0, "weights")
    versions.publish(7, 1)
    assert versions.admits(10, exact=False)


def test_requests_to_the_learners():
    requests = LearnerRequests()
    assert requests.leave_reason == "" and not requests.leaving
    requests.leave("a change to 2 learners")
    requests.leave("a change to 3 learners")
    assert requests.leave_reason == "a change to 2 learners" and requests.leaving
    requests.left()
    assert requests.leave_reason == "" and not requests.leaving
    requests.stop("SIGTERM")
    requests.left()
    requests.restart()
    assert requests.leave_reason == requests.stop_reason == "SIGTERM" and requests.leaving
    assert requests.abort_reason == ""


def test_a_request_to_leave_is_for_the_present_learners():
    requests = LearnerRequests()
    requests.leave("a change to 2 learners")
    requests.restart()
    assert requests.leave_reason == ""


def test_absence_is_counted_from_its_beginning():
    presence = LearnerPresence(now=10.0)
    assert presence.absent_s(12.0) == 2.0 and presence.controller_pid == 0
    presence.set(True, 7, now=13.0)
    assert presence.absent_s(50.0) == 0.0 and presence.controller_pid == 7
    presence.set(False, 7, now=60.0)
    presence.set(False, 8, now=61.0)
    assert presence.absent_s(63.0) == 3.0 and presence.controller_pid == 8


def test_the_coordinator_forgets_and_admits_nobody_until_the_learners_publish_again():
    async def story():
        coordinator = Coordinator(max_staleness=1)
        answer = await coordinator.admit(0, wait_s=0.01)
        assert not answer.admitted and (answer.newest, answer.needed) == (-1, 0)
        with pytest.raises(RuntimeError, match="restarted while the learners started"):
            await coordinator.start_step()
        await coordinator.restart(0)
        assert (await coordinator.admit(1)).newest == 0 and await coordinator.start_step() == 0
        with pytest.raises(RuntimeError, match="0 of 2 pieces of version 1"):
            await coordinator.publish(1, 2)
        assert not (await coordinator.admit(2, wait_s=0.01)).admitted
        await coordinator.publish(1, 0)
        assert (await coordinator.admit(2)).newest == 1
        await coordinator.restart(5)
        assert not (await coordinator.admit(1, wait_s=0.01)).admitted

    asyncio.run(story())


def test_a_waiting_group_starts_with_the_publication():
    async def story():
        coordinator = Coordinator(max_staleness=0)
        await coordinator.restart(0)
        waiting = asyncio.create_task(coordinator.admit(1))
        await asyncio.sleep(0)
        await coordinator.publish(1, 0)
        assert (await asyncio.wait_for(waiting, 1.0)).admitted

    asyncio.run(story())


def test_who_asks_the_learners_to_leave():
    async def story():
        coordinator = Coordinator(0)
        assert await coordinator.leave_requested() == ""
        assert not await coordinator.request_leave("a change to 2 learners", timeout_s=0.01)
        assert await coordinator.leave_requested() == "a change to 2 learners"
        waiting = asyncio.create_task(coordinator.request_leave("a change to 3 learners", timeout_s=5.0))
        await asyncio.sleep(0)
        await coordinator.learners_left()
        assert await waiting and await coordinator.leave_requested() == ""
        await coordinator.request_stop("SIGTERM")
        await coordinator.learners_left()
        await coordinator.restart(4)
        assert await coordinator.leave_requested() == "SIGTERM", "a stop is for good"
        assert await coordinator.ended() == ("SIGTERM", "")

    asyncio.run(story())


def test_only_so_many_groups_wait_in_the_coordinator(monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING_ADMISSIONS", 3)

    async def story():
        coordinator = Coordinator(0)
        await coordinator.restart(0)
        waiting = [asyncio.create_task(coordinator.admit(1)) for _ in range(3)]
        await asyncio.sleep(0.01)
        refused = await coordinator.admit(1)
        assert refused.busy and not refused.admitted
        assert (await coordinator.admit(0)).admitted, (
            "a group that may start does not wait for those that may not"
        )
        await coordinator.publish(1, 0)
        assert all(answer.admitted for answer in await asyncio.gather(*waiting))
        assert (await coordinator.admit(1)).admitted

    asyncio.run(story())
