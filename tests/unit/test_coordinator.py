"""The parts of the coordinator, stepped by hand, and the actor's class without Ray."""

import asyncio

import pytest

from srft_ray.sync import admission
from srft_ray.sync import coordinator as module
from srft_ray.sync.admission import Admission, wait_for_admission
from srft_ray.sync.coordinator import Coordinator
from srft_ray.sync.health import Heartbeat
from srft_ray.sync.learners import LearnerPresence, LearnerRequests
from srft_ray.sync.processes import Process
from srft_ray.sync.versions import UNKNOWN, OutdatedLearners, PolicyWeights, PublishedVersions


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_a_group_starts_within_the_staleness_bound(max_staleness):
    versions = PublishedVersions(max_staleness)
    versions.restart(0, now=100.0)
    for version in range(4):
        admitted = [step for step in range(10) if versions.admits(step, exact=False)]
        assert admitted == list(range(version + max_staleness + 1))
        exactly = [step for step in range(10) if versions.admits(step, exact=True)]
        assert exactly == list(range(version + 1))
        versions.publish(100, PolicyWeights(version + 1, "ab"), 0)


def test_nobody_starts_before_the_checkpoint_is_published():
    versions = PublishedVersions(1)
    versions.restart(5, now=100.0)
    assert versions.start.step == 5 and versions.offered.version == UNKNOWN
    assert not versions.admits(5, exact=False) and not versions.admits(0, exact=False)
    versions.add_piece(100, 0, "weights")
    versions.publish(100, PolicyWeights(5, "ab"), 1)
    assert versions.admits(6, exact=False) and not versions.admits(7, exact=False)
    assert versions.weights() == (PolicyWeights(5, "ab"), ["weights"])


def test_a_version_is_published_whole_or_not_at_all():
    versions = PublishedVersions(0)
    versions.restart(0, now=100.0)
    versions.add_piece(100, 1, "second")
    with pytest.raises(RuntimeError, match="1 of 2 pieces of version 1 are here"):
        versions.publish(100, PolicyWeights(1, "ab"), 2)
    assert versions.weights() == (PolicyWeights(0), [])
    versions.add_piece(100, 0, "first")
    versions.add_piece(100, 1, "second again")
    versions.publish(100, PolicyWeights(1, "ab"), 2)
    assert versions.weights() == (PolicyWeights(1, "ab"), ["first", "second again"])
    # Pieces of one version never become a part of the next.
    with pytest.raises(RuntimeError, match="0 of 2 pieces of version 2"):
        versions.publish(100, PolicyWeights(2, "ab"), 2)


def test_publications_that_nobody_reads_are_counted():
    versions = PublishedVersions(0)
    versions.restart(0, now=100.0)
    unread = []
    for version, read in ((1, True), (2, False), (3, False), (4, True)):
        versions.add_piece(100, 0, "weights")
        versions.publish(100, PolicyWeights(version, "ab"), 1)
        unread.append(versions.unread)
        if read:
            versions.weights()
    # The newest may still be read; what a new start of the learners replaces was not published in vain.
    versions.restart(3, now=200.0)
    assert unread == [0, 0, 1, 2] and versions.unread == 2


def test_a_coordinator_without_memory_admits_nobody():
    versions = PublishedVersions(3)
    assert not versions.admits(0, exact=False)
    with pytest.raises(RuntimeError, match="restarted while the learners started"):
        _ = versions.start
    versions.add_piece(100, 0, "weights")
    versions.publish(100, PolicyWeights(7, "ab"), 1)
    assert versions.admits(10, exact=False)


def test_what_learners_of_an_earlier_start_publish_is_refused():
    versions = PublishedVersions(0)
    first = versions.restart(0, now=100.0)
    second = versions.restart(4, now=50.0)
    assert (first.generation, second.generation) == (100, 101)
    with pytest.raises(OutdatedLearners, match="learners of start 100 published, but start 101"):
        versions.add_piece(first.generation, 0, "old")
    with pytest.raises(OutdatedLearners):
        versions.publish(first.generation, PolicyWeights(9, "ab"), 0)
    assert versions.offered == PolicyWeights(UNKNOWN)
    versions.publish(second.generation, PolicyWeights(4, "cd"), 0)
    assert versions.offered == PolicyWeights(4, "cd")


def test_generations_increase_although_the_last_one_is_forgotten():
    before = PublishedVersions(0).restart(0, now=100.0)
    versions = PublishedVersions(0, forgot=True)
    # The present learners go on with what they have, and are known from then on.
    versions.publish(before.generation, PolicyWeights(3, "ab"), 0)
    assert versions.generation == before.generation
    assert versions.restart(3, now=100.0).generation > before.generation
    # Those of a start between two deaths of the actor are refused too, because time has passed.
    versions = PublishedVersions(0, forgot=True)
    versions.restart(3, now=160.0)
    with pytest.raises(OutdatedLearners):
        versions.publish(before.generation, PolicyWeights(4, "ab"), 0)


def test_only_in_the_first_start_engines_hold_the_model_already():
    versions = PublishedVersions(0)
    assert versions.restart(0, now=1.0).from_model and versions.offered == PolicyWeights(0)
    assert not versions.restart(0, now=1.0).from_model and versions.offered == PolicyWeights(UNKNOWN)
    assert not PublishedVersions(0, forgot=True).restart(0, now=1.0).from_model
    assert not PublishedVersions(0).restart(2, now=1.0).from_model


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
    assert presence.absent_s(12.0) == 2.0 and presence.controller == Process()
    presence.set(True, Process(7, 1), now=13.0)
    assert presence.absent_s(50.0) == 0.0 and presence.controller == Process(7, 1)
    presence.set(False, Process(7, 1), now=60.0)
    presence.set(False, Process(8, 2), now=61.0)
    assert presence.absent_s(63.0) == 3.0 and presence.controller == Process(8, 2)


def test_the_coordinator_forgets_and_admits_nobody_until_the_learners_publish_again():
    async def story():
        coordinator = Coordinator(max_staleness=1)
        answer = await coordinator.admit(0, wait_s=0.01)
        assert not answer.admitted and (answer.offered.version, answer.needed) == (-1, 0)
        with pytest.raises(RuntimeError, match="restarted while the learners started"):
            await coordinator.learner_start()
        await coordinator.restart(0)
        assert (await coordinator.admit(1)).offered == PolicyWeights(0)
        start = await coordinator.learner_start()
        assert start.step == 0 and start.from_model
        with pytest.raises(RuntimeError, match="0 of 2 pieces of version 1"):
            await coordinator.publish(start.generation, PolicyWeights(1, "ab"), 2)
        assert not (await coordinator.admit(2, wait_s=0.01)).admitted
        await coordinator.publish(start.generation, PolicyWeights(1, "ab"), 0)
        assert (await coordinator.admit(2)).offered == PolicyWeights(1, "ab")
        await coordinator.restart(5)
        assert not (await coordinator.admit(1, wait_s=0.01)).admitted

    asyncio.run(story())


def test_a_waiting_group_starts_with_the_publication():
    async def story():
        coordinator = Coordinator(max_staleness=0)
        start = await coordinator.restart(0)
        waiting = asyncio.create_task(coordinator.admit(1))
        await asyncio.sleep(0)
        await coordinator.publish(start.generation, PolicyWeights(1, "ab"), 0)
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
        start = await coordinator.restart(0)
        waiting = [asyncio.create_task(coordinator.admit(1)) for _ in range(3)]
        await asyncio.sleep(0.01)
        refused = await coordinator.admit(1)
        assert refused.busy and not refused.admitted
        assert (await coordinator.admit(0)).admitted, (
            "a group that may start does not wait for those that may not"
        )
        await coordinator.publish(start.generation, PolicyWeights(1, "ab"), 0)
        assert all(answer.admitted for answer in await asyncio.gather(*waiting))
        assert (await coordinator.admit(1)).admitted

    asyncio.run(story())


class Answers:
    """A coordinator that gives these answers, one after another; the last one again and again."""

    def __init__(self, *answers: Admission) -> None:
        self.answers = list(answers)
        self.admit = self

    def remote(self, *_: object) -> Admission:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def test_a_group_waits_as_long_as_something_comes_forward(monkeypatch):
    """A stage without rollouts lasts longer than any single wait; a learner that is stuck does not."""
    clock = iter(range(1000))
    monkeypatch.setattr(admission.time, "monotonic", lambda: 10.0 * next(clock))
    monkeypatch.setattr(admission.ray, "get", lambda answer: answer)
    waiting = [Admission(False, PolicyWeights(0), 1, 9, progress=(1, 0, taken, 0)) for taken in range(50)]
    admitted = Admission(True, PolicyWeights(9), 1, 9)
    assert wait_for_admission(Answers(*waiting, admitted), 9, False, timeout_s=25.0) is admitted
    with pytest.raises(TimeoutError, match="neither learners nor engines have come forward"):
        wait_for_admission(Answers(*waiting), 9, False, timeout_s=25.0)


def test_progress_is_what_learners_and_engines_do():
    coordinator = Coordinator(0)
    asyncio.run(coordinator.restart(0))

    def progress() -> tuple[int, ...]:
        return asyncio.run(coordinator.admit(5, wait_s=0.0)).progress

    before = progress()
    assert progress() == before
    asyncio.run(coordinator.engine_metrics(8))
    taken = progress()
    coordinator.monitor.heartbeat(Heartbeat("a", "node", 1, 0, 0, 3, before[0]), 0.0)
    finished = progress()
    assert len({before, taken, finished}) == 3
