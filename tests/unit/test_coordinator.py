"""The parts of the coordinator, stepped by hand, and the actor's class without Ray."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from srft_ray.sync import admission, node_copy
from srft_ray.sync.admission import Admission, wait_for_admission
from srft_ray.sync.coordinator import Coordinator
from srft_ray.sync.health import Heartbeat
from srft_ray.sync.learners import LearnerPresence, LearnerRequests
from srft_ray.sync.processes import Process
from srft_ray.sync.versions import OutdatedLearners, PolicyWeights, WeightShare
from tests.unit.test_versions import share, weights


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
        answer = await coordinator.admit(1, 0, wait_s=0.01)
        assert not answer.admitted and (answer.offered.version, answer.needed) == (-1, 0)
        with pytest.raises(RuntimeError, match="restarted while the learners started"):
            await coordinator.learner_starts()
        start = await coordinator.restart(0)
        assert (await coordinator.admit(start.generation, 1)).offered == PolicyWeights(0)
        assert await coordinator.learner_starts() == [start]
        assert start.step == 0 and start.from_model
        await coordinator.publish(start.generation, share(1, "first", ranks=2))
        assert await coordinator.has_share(start.generation, 1, 0)
        assert not await coordinator.has_share(start.generation, 1, 1)
        assert not (await coordinator.admit(start.generation, 2, wait_s=0.01)).admitted
        await coordinator.publish(start.generation, share(1, "second", rank=1))
        assert (await coordinator.admit(start.generation, 2)).offered == weights(1, 2 * 0xAB)
        assert (await coordinator.weights()).pieces == ["first", "second"]
        start = await coordinator.restart(5)
        assert not (await coordinator.admit(start.generation, 1, wait_s=0.01)).admitted

    asyncio.run(story())


def test_a_waiting_group_starts_with_the_publication():
    async def story():
        coordinator = Coordinator(max_staleness=0)
        start = await coordinator.restart(0)
        waiting = asyncio.create_task(coordinator.admit(start.generation, 1))
        await asyncio.sleep(0)
        await coordinator.publish(start.generation, share(1))
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


def test_only_so_many_groups_wait_in_the_coordinator():
    async def story():
        coordinator = Coordinator(0, max_waiting=3)
        start = await coordinator.restart(0)
        waiting = [asyncio.create_task(coordinator.admit(start.generation, 1)) for _ in range(3)]
        await asyncio.sleep(0.01)
        refused = await coordinator.admit(start.generation, 1)
        assert refused.busy and not refused.admitted
        assert (await coordinator.admit(start.generation, 0)).admitted, (
            "a group that may start does not wait for those that may not"
        )
        await coordinator.publish(start.generation, share(1))
        assert all(answer.admitted for answer in await asyncio.gather(*waiting))
        assert (await coordinator.admit(start.generation, 1)).admitted

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
    assert wait_for_admission(Answers(*waiting, admitted), 1, 9, False, timeout_s=25.0) is admitted
    with pytest.raises(TimeoutError, match="neither learners nor engines have come forward"):
        wait_for_admission(Answers(*waiting), 1, 9, False, timeout_s=25.0)


def test_groups_of_a_node_that_wait_together_ask_once(tmp_path, monkeypatch):
    monkeypatch.setattr(node_copy, "SHARED_MEMORY", tmp_path)
    refused = Admission(False, PolicyWeights(8, "0a"), 1, 9, True, (1, 8, 0, 0))
    admitted = Admission(True, PolicyWeights(9, "0b"), 1, 9, progress=(1, 9, 4, 4))
    answers, asked = [refused, admitted], []

    def get(question: tuple) -> Admission:
        asked.append(question[:3])
        time.sleep(0.3)  # in which the others come
        return answers.pop(0) if len(answers) > 1 else admitted

    monkeypatch.setattr(admission.ray, "get", get)
    coordinator = SimpleNamespace(admit=SimpleNamespace(remote=lambda *question: question))
    with ThreadPoolExecutor(8) as threads:
        waiting = [
            threads.submit(wait_for_admission, coordinator, 1, 9, False, 25.0, "node") for _ in range(8)
        ]
        assert [group.result() for group in waiting] == [admitted] * 8
    assert {*asked} == {(1, 9, False)} and len(asked) < 8, "each of them would ask twice"


def test_progress_is_what_learners_and_engines_do():
    coordinator = Coordinator(0)
    generation = asyncio.run(coordinator.restart(0)).generation

    def progress() -> tuple[int, ...]:
        return asyncio.run(coordinator.admit(generation, 5, wait_s=0.0)).progress

    before = progress()
    assert progress() == before
    asyncio.run(coordinator.engine_metrics(8))
    taken = progress()
    coordinator.monitor.heartbeat(Heartbeat("a", "node", 1, 0, 0, 3, before[0]), 0.0)
    finished = progress()
    assert len({before, taken, finished}) == 3


def test_a_rank_is_told_at_once_that_it_has_to_publish_again():
    async def story():
        coordinator = Coordinator(0)
        start = await coordinator.restart(0)
        await coordinator.publish(start.generation, WeightShare(1, 0, ranks=1))
        assert await coordinator.has_share(start.generation, 1, 0, wait_s=0.01)
        assert not await asyncio.wait_for(coordinator.has_share(start.generation, 2, 0, wait_s=60.0), 1.0)
        waiting = asyncio.create_task(coordinator.has_share(start.generation, 1, 0, wait_s=60.0))
        await asyncio.sleep(0)
        await coordinator.restart(1)
        with pytest.raises(OutdatedLearners):
            await asyncio.wait_for(waiting, 1.0)

    asyncio.run(story())


def test_an_engine_waits_for_pieces_that_learners_keep_until_there_is_another_version():
    async def story():
        coordinator = Coordinator(0)
        start = await coordinator.restart(0)

        async def publish(version, pieces):
            headers = {"model": b"header"}
            await coordinator.publish(start.generation, WeightShare(version, 0, 1, pieces, 1, headers))

        await publish(1, None)
        asked = asyncio.create_task(coordinator.has_share(start.generation, 1, 0, wait_s=60.0))
        waiting = asyncio.create_task(coordinator.pieces(1, wait_s=60.0))
        assert not await asyncio.wait_for(asked, 1.0), "the learner is told at once"
        await publish(1, ["piece"])
        assert (await asyncio.wait_for(waiting, 1.0)).pieces == ["piece"]
        await publish(2, None)
        waiting = asyncio.create_task(coordinator.pieces(2, wait_s=60.0))
        await asyncio.sleep(0)
        await publish(3, None)
        assert (await asyncio.wait_for(waiting, 1.0)).weights.version == 3
        assert (await coordinator.pieces(3, wait_s=0.01)).pieces is None

    asyncio.run(story())


def test_a_version_that_a_round_brought_to_a_node_counts_as_read(monkeypatch):
    async def story():
        coordinator = Coordinator(0)
        generation = (await coordinator.restart(0)).generation
        monkeypatch.setattr(coordinator.rounds, "reached", lambda version: int(version == 1))
        found = []
        for version in (1, 2, 3):
            await coordinator.publish(generation, share(version, "weights"))
            found.append((await coordinator.engine_metrics(0))["publications/unread"])
        # The third has taken the place of one that was brought nowhere, and nobody asked for.
        assert found == [0.0, 0.0, 1.0]

    asyncio.run(story())
