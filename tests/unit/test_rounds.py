"""Who takes part in a round of the collective transport, whatever happens to engines, learners and the
coordinator meanwhile."""

import asyncio
import time

import pytest

from srft_ray.sync import rounds as module
from srft_ray.sync.coordinator import Coordinator
from srft_ray.sync.round_messages import Entry, Waiting
from srft_ray.sync.versions import OutdatedLearners, fingerprint_of

WAIT_S = 5.0  # longer than anything takes that does not wait for a deadline
SHORT_S = 0.2


@pytest.fixture(autouse=True)
def ready_at_once(monkeypatch):
    monkeypatch.setattr(module, "READY_S", SHORT_S)
    monkeypatch.setattr(module, "SIBLINGS_S", SHORT_S / 4)


def entry(version, rank=0, ranks=1, group=""):
    return Entry(version, rank, ranks, 0xAB, ("host", rank), "home", group, {"f": b"h"} if rank == 0 else {})


class Scene:
    """A coordinator with learners of one start, and listeners that get ready when they are invited."""

    def __init__(self):
        self.reports = []
        self.begin()

    def begin(self):
        """The coordinator starts; it knows nothing."""
        self.coordinator = Coordinator(0)
        self.coordinator.rounds._report = self.reports.append
        self.generation = 7

    def enter(self, *entries):
        calls = (self.coordinator.enter_round(self.generation, one, WAIT_S) for one in entries)
        return asyncio.gather(*calls)

    async def listen(self, name, node="node", group="", holds=""):
        """What a listener that is ready at once finds: the round, or None."""
        notice = await self.coordinator.next_round(Waiting(name, node, holds), WAIT_S)
        if notice.invitation is None:
            return None
        return await self.coordinator.join_round(notice.invitation.round, name, group, "folder")

    async def round(self, entries, **listeners):
        """All listeners wait, then the learners enter: what each of them is told."""
        tasks = [asyncio.create_task(self.listen(name, **about)) for name, about in listeners.items()]
        await asyncio.sleep(0.01)
        told = await self.enter(*entries)
        for task in tasks:
            if task.done():
                told.append(task.result())
            else:
                await asyncio.sleep(0.01)
                told.append(task.result() if task.done() else task.cancel() and None)
        return told


def test_all_ranks_and_all_nodes_are_told_the_same_round():
    async def scene():
        scene = Scene()
        told = await scene.round([entry(3, 0, 2), entry(3, 1, 2)], b={"node": "B"}, a={"node": "A"})
        assert all(one == told[0] for one in told)
        return told[0]

    found = asyncio.run(scene())
    assert (found.version, found.members) == (3, ("a", "b"))
    assert found.addresses == (("host", 0), ("host", 1))


def test_a_learner_sends_nothing_to_its_own_node():
    async def scene():
        scene = Scene()
        nodes = {"a": {"node": "home"}, "b": {"node": "B"}}
        return (await scene.round([entry(3)], **nodes))[0]

    found = asyncio.run(scene())
    assert found.members == ("a", "b") and found.receivers(0) == ["b"] and found.folder(0) == "folder"


def test_an_invitation_has_the_fingerprint_of_all_ranks_and_the_senders_headers():
    async def scene():
        scene = Scene()
        waiting = asyncio.create_task(scene.coordinator.next_round(Waiting("a", "A"), WAIT_S))
        await asyncio.sleep(0.01)
        entered = scene.enter(entry(3, 1, 2), entry(3, 0, 2))
        return (await waiting).invitation, await entered

    invitation, rounds = asyncio.run(scene())
    assert (invitation.fingerprint, invitation.headers) == (fingerprint_of(2 * 0xAB), {"f": b"h"})
    # It was invited and never got ready: the learners go on without it.
    assert [found.members for found in rounds] == [(), ()]


def test_a_node_has_one_listener_and_keeps_it():
    async def scene():
        scene = Scene()
        listeners = {"b": {}, "c": {}}
        first, *others = await scene.round([entry(3)], **listeners)
        assert others.count(None) == 1 and first.members == ("b",)
        listeners = {"a": {}, "b": {"group": first.group}, "c": {}}
        second, *_ = await scene.round([entry(4, group=first.group)], **listeners)
        return first, second

    first, second = asyncio.run(scene())
    assert second.members == first.members and second.group == first.group and second.name != first.name


def test_a_dead_listener_costs_no_round_where_its_node_has_another_one(monkeypatch):
    """It counts as one that waits, and is invited first."""
    monkeypatch.setattr(module, "READY_S", WAIT_S)

    async def scene():
        scene = Scene()
        dead = asyncio.create_task(scene.coordinator.next_round(Waiting("a", "A"), WAIT_S))
        return await scene.round([entry(3)], b={"node": "A"}, c={"node": "A"}), await dead, scene.reports

    started = time.monotonic()
    (found, *_), dead, reports = asyncio.run(scene())
    assert dead.invitation and found.members in (("b",), ("c",)) and not reports
    assert time.monotonic() - started < WAIT_S / 2


@pytest.mark.parametrize(
    ("learner", "listener"), [(False, True), (True, False)], ids=["learner lost it", "listener lost it"]
)
def test_groups_are_made_anew_unless_all_have_them(learner, listener):
    async def scene():
        scene = Scene()
        first, *_ = await scene.round([entry(3)], a={})
        group = first.group if listener else ""
        second, *_ = await scene.round([entry(4, group=first.group if learner else "")], a={"group": group})
        return first, second

    first, second = asyncio.run(scene())
    assert second.members == first.members and second.group != first.group


def test_groups_are_made_anew_when_members_change():
    async def scene():
        scene = Scene()
        first, *_ = await scene.round([entry(3)], a={})
        return first, (
            await scene.round(
                [entry(4, group=first.group)], a={"group": first.group}, b={"node": "other", "group": ""}
            )
        )[0]

    first, second = asyncio.run(scene())
    assert second.members == ("a", "b") and second.group != first.group


def test_an_idle_listener_waits_and_one_that_comes_late_is_invited_to_the_next_round():
    async def scene():
        scene = Scene()
        late = Waiting("late", "B")
        first, *_ = await scene.round([entry(3)], a={})
        assert (await scene.coordinator.next_round(late, SHORT_S)).invitation is None
        # It is between two questions when the learners enter, and counts as one that waits.
        entered = scene.enter(entry(4))
        await asyncio.sleep(0.01)
        notice = await scene.coordinator.next_round(late, WAIT_S)
        joined = await scene.coordinator.join_round(notice.invitation.round, "late", "", "folder")
        [second] = await entered
        return first, second, joined

    first, second, joined = asyncio.run(scene())
    assert first.members == ("a",) and second.members == ("late",) and second == joined


def test_who_is_ready_after_the_others_is_no_member():
    async def scene():
        scene = Scene()
        waiting = asyncio.create_task(scene.coordinator.next_round(Waiting("slow", "B"), WAIT_S))
        first, joined = await scene.round([entry(3)], a={"node": "A"})
        name = (await waiting).invitation.round
        assert first == joined and first.members == ("a",)
        [report] = scene.reports
        assert "(1 nodes were not ready within" in report
        assert await scene.coordinator.join_round(name, "slow", "", "folder") is None
        assert await scene.coordinator.join_round("a round that is forgotten", "slow", "", "folder") is None

    asyncio.run(scene())


def test_a_rank_that_never_comes_ends_the_round_for_all():
    async def scene():
        scene = Scene()
        about = scene.generation, entry(3, 0, 2), SHORT_S
        assert await scene.coordinator.enter_round(*about) is None
        late = scene.generation, entry(3, 1, 2), WAIT_S
        return await asyncio.wait_for(scene.coordinator.enter_round(*late), SHORT_S)

    assert asyncio.run(scene()) is None


def test_a_coordinator_that_forgot_releases_what_listeners_hold_and_makes_new_groups():
    async def scene():
        scene = Scene()
        first, *_ = await scene.round([entry(3)], a={})
        holds = fingerprint_of(0xAB)
        assert not (await scene.coordinator.next_round(Waiting("a", "A", holds), SHORT_S)).released
        scene.begin()
        assert (await scene.coordinator.next_round(Waiting("a", "A", holds), SHORT_S)).released
        second, *_ = await scene.round([entry(4, group=first.group)], a={"group": first.group})
        return first, second

    first, second = asyncio.run(scene())
    assert second.members == first.members and second.group != first.group


def test_copies_are_released_when_the_learners_leave():
    async def scene():
        scene = Scene()
        await scene.round([entry(3)], a={})
        waiting = Waiting("a", "A", fingerprint_of(0xAB))
        told = asyncio.create_task(scene.coordinator.next_round(waiting, WAIT_S))
        await asyncio.sleep(0.01)
        assert not told.done()
        await scene.coordinator.learners_left()
        assert (await told).released

    asyncio.run(scene())


def test_learners_of_an_earlier_start_do_not_enter():
    async def scene():
        scene = Scene()
        start = await scene.coordinator.restart(3)
        with pytest.raises(OutdatedLearners):
            await scene.enter(entry(3))
        scene.generation = start.generation
        return (await scene.round([entry(3)], a={}))[0]

    assert asyncio.run(scene()).members == ("a",)


def test_a_round_that_failed_is_reported_once():
    async def scene():
        scene = Scene()
        found, _ = await scene.round([entry(3)], a={})
        for problem in ("connection closed", "deadline"):
            await scene.coordinator.round_failed(found.name, problem)
        await scene.coordinator.round_failed("an earlier one", "deadline")
        return scene.reports

    [report] = asyncio.run(scene())
    assert report.startswith("policy version 3 did not reach") and "(connection closed)" in report


def test_nodes_are_reached_by_the_version_that_was_sent_and_by_no_other():
    async def scene():
        scene = Scene()
        await scene.round([entry(3)], a={"node": "A"}, b={"node": "B"})
        metrics = [await scene.coordinator.engine_metrics(0, version) for version in (3, 4)]
        return [found["publications/nodes_reached"] for found in metrics]

    assert asyncio.run(scene()) == [2.0, 0.0]


def test_a_listener_that_fails_before_it_is_ready_is_reported():
    async def scene():
        scene = Scene()
        waiting = asyncio.create_task(scene.coordinator.next_round(Waiting("full", "A"), WAIT_S))
        await asyncio.sleep(0.01)
        entered = scene.enter(entry(3))
        name = (await waiting).invitation.round
        await scene.coordinator.round_failed(name, "no space left")
        await entered
        return scene.reports, scene.coordinator.rounds.reached(3)

    reports, reached = asyncio.run(scene())
    assert "(no space left)" in reports[0] and reached == 0
