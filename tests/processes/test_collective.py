"""The collective transport between processes, over gloo: weights arrive, whoever is killed."""

import socket
import threading
import time
from pathlib import Path

import pytest

from srft_ray.sync import node_copy
from srft_ray.sync.broadcast import Deadline
from srft_ray.sync.fingerprint import fingerprint
from srft_ray.sync.listener import Listener
from srft_ray.sync.round_messages import Invitation, Round
from tests.processes.cast import OTHER, cast, weights

DEADLINE_S = 8.0
SLACK_S = 8.0  # of a machine that does other things


def expected(version: int, by_store: bool = False) -> tuple[int, str, bool]:
    return version, fingerprint(weights(version).items()), by_store


@pytest.mark.parametrize(("ranks", "nodes"), [(1, "A"), (2, "AB"), (2, "ABC")])
def test_every_engine_has_the_weights_before_it_asks(tmp_path: Path, ranks: int, nodes: str):
    with cast(tmp_path, ranks, nodes) as scene:
        for version in (1, 2):
            scene.wait_for_listeners(len(nodes))
            scene.publish(version)
            assert scene.fetch() == [expected(version)] * len(nodes)
        assert not scene.served.told()


@pytest.mark.parametrize(("homes", "nodes"), [("A", "A"), ("AA", "AB"), ("AB", "ABB"), ("AB", "CA")])
def test_learners_write_the_copy_of_their_own_node(tmp_path: Path, homes: str, nodes: str):
    """And send it to the others; from the second version on they write it at once, also after one that has
    other tensors."""
    with cast(tmp_path, len(homes), nodes, homes=homes) as scene:
        for version in range(1, OTHER + 4):
            scene.wait_for_listeners(len(nodes))
            scene.publish(version)
            assert scene.fetch() == [expected(version)] * len(nodes)
            copies = list((tmp_path / homes[0]).glob("srft_ray_weights_*"))
            assert len(copies) <= 3, "the one of the engines, the newest one and the one before"
            [whole] = [copy for copy in copies if node_copy.PART not in copy.name]
            links = {file.stat().st_nlink for file in whole.iterdir()}
            assert links == {1 if version in (1, OTHER, OTHER + 1) else 2}
        assert not scene.served.told()


def test_a_node_that_no_round_reached_has_what_learners_keep(tmp_path: Path):
    """Whether the coordinator knows of it or has forgotten it."""
    with cast(tmp_path, 2, "A", homes="AB") as scene:
        for version in (1, 2):
            scene.wait_for_listeners(1)
            scene.publish(version)
        scene.add_engine("C")
        assert scene.fetch(1) == [expected(2, by_store=True)]
        scene.served.forget()
        scene.add_engine("D")
        assert scene.fetch(2) == [expected(2, by_store=True)]


def test_engines_of_one_node_have_one_copy_and_one_that_joins_takes_it(tmp_path: Path):
    with cast(tmp_path, 1, "AA") as scene:
        scene.wait_for_listeners(2)
        scene.publish(1)
        scene.add_engine("A")
        scene.add_engine("B")
        assert scene.fetch() == [expected(1)] * 3 + [expected(1, by_store=True)]
        assert len(list((tmp_path / "A").glob("srft_ray_weights_*"))) == 1
        # From now on the new node takes part.
        scene.wait_for_listeners(4)
        scene.publish(2)
        assert scene.fetch() == [expected(2)] * 4


@pytest.mark.parametrize("dies", ["killed before", "stopped after"])
def test_learners_do_not_wait_for_the_listener_of_their_own_node(tmp_path: Path, dies: str):
    with cast(tmp_path, 1, "A", 60.0, {0: dies}, homes="A") as scene:
        scene.wait_for_listeners(1)
        assert scene.publish(1) < 30.0, "half of the deadline"


@pytest.mark.parametrize("dies", ["killed before", "killed after", "stopped after"])
def test_a_listener_that_dies_between_ready_and_broadcast_takes_nothing_from_the_others(
    tmp_path: Path, dies: str
):
    """Before or after it has connected; or it hangs."""
    with cast(tmp_path, 2, "ABC", DEADLINE_S, {1: dies}) as scene:
        scene.wait_for_listeners(3)
        seconds = scene.publish(1)
        print(f"{dies}: published in {seconds:.1f} s")
        assert seconds < DEADLINE_S + SLACK_S
        assert [found[:2] for found in scene.fetch(0, 2)] == [expected(1)[:2]] * 2
        assert any(by_store for *_, by_store in scene.fetch(0, 2))
        [report] = scene.served.told()
        assert report.startswith("policy version 1 did not reach all nodes")
        # The next round is of those that live.
        scene.wait_for_listeners(2)
        scene.publish(2)
        assert scene.fetch(0, 2) == [expected(2)] * 2


def test_an_engine_does_not_wait_for_a_listener_of_its_node_that_hangs(tmp_path: Path):
    """Whichever of the two is invited is stopped in the round, and holds the lock of the node's copy."""
    with cast(tmp_path, 1, "AA", DEADLINE_S, {0: "stopped after", 1: "stopped after"}) as scene:
        scene.wait_for_listeners(2)
        scene.publish(1)
        seconds, answer = scene.first_fetch()
        print(f"fetched in {seconds:.1f} s")
        assert answer == expected(1, by_store=True)
        assert seconds < DEADLINE_S + SLACK_S


def test_whatever_a_listener_raises_is_reported_and_costs_one_round(tmp_path: Path):
    with cast(tmp_path, 1, "A", DEADLINE_S, {0: "raises"}) as scene:
        scene.wait_for_listeners(1)
        scene.publish(1)
        assert scene.fetch() == [expected(1, by_store=True)]
        [report] = scene.served.told()
        assert "KeyError at a listener: 'of a program that is wrong'" in report
        scene.wait_for_listeners(1)
        scene.publish(2)
        assert scene.fetch() == [expected(2)]


@pytest.fixture
def holder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Listener:
    """A listener that holds a copy, without a coordinator."""
    monkeypatch.setattr(node_copy, "SHARED_MEMORY", tmp_path)
    listener = Listener(None, "gloo", DEADLINE_S)
    monkeypatch.setattr(listener, "_receive", lambda *about: None)
    listener._take_part(Invitation("round", "a", {}))
    assert list(tmp_path.iterdir())
    return listener


def test_a_listener_whose_thread_ends_leaves_no_copy(holder: Listener, tmp_path: Path):
    with pytest.raises(AttributeError):  # there is no coordinator
        holder._listen()
    assert not list(tmp_path.iterdir())


def test_a_process_that_ends_leaves_no_copy(holder: Listener, tmp_path: Path):
    holder.end()
    assert not list(tmp_path.iterdir())
    # Of a round that was under way.
    holder._take_part(Invitation("round", "b", {}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("version", "homes"),
    [(1, ""), (2, ""), (1, "AB")],
    ids=["new groups", "groups that are used again", "learners write themselves"],
)
def test_a_learner_that_does_not_hear_of_the_round_ends_it_for_all(tmp_path: Path, version: int, homes: str):
    with cast(tmp_path, 2, "AB", homes=homes) as scene:
        for before in range(1, version):
            scene.wait_for_listeners(2)
            scene.publish(before)
        scene.wait_for_listeners(2)
        started = time.monotonic()
        scene.publish(version, fails=1)
        assert scene.fetch() == [expected(version, by_store=True)] * 2
        seconds = time.monotonic() - started
        print(f"fetched in {seconds:.1f} s")
        assert seconds < 30.0, "half of the deadline"
        scene.wait_for_listeners(2)
        scene.publish(version + 1)
        assert scene.fetch() == [expected(version + 1)] * 2


def test_a_learner_that_leaves_while_a_listener_connects_costs_no_more_than_the_deadline():
    """PyTorch's store tries twice, with a random pause between, which may be as long as a try and a half."""
    listener = Listener(None, "gloo", DEADLINE_S)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()

        def leave() -> None:
            connection, _ = server.accept()
            server.close()
            connection.close()

        threading.Thread(target=leave, daemon=True).start()
        round = Round("round", 1, "group", (listener.name,), ("B",), ("",), (address,), ("A",), ("",))
        started = time.monotonic()
        with pytest.raises(RuntimeError):
            listener._connect(round, Deadline(DEADLINE_S))
    assert time.monotonic() - started < DEADLINE_S


@pytest.mark.parametrize("call", ["enter_round", "join_round"])
def test_a_coordinator_that_hangs_costs_no_more_than_the_deadline(tmp_path: Path, call: str):
    """While it is asked by a learner or by a listener."""
    with cast(tmp_path, 1, "A", DEADLINE_S) as scene:
        scene.wait_for_listeners(1)
        scene.served.hang(call)
        seconds = scene.publish(1)
        print(f"published in {seconds:.1f} s")
        assert seconds < 1.5 * DEADLINE_S
        assert scene.fetch() == [expected(1, by_store=True)]
        scene.served.hang("")
        scene.wait_for_listeners(1)
        scene.publish(2)
        assert scene.fetch() == [expected(2)]


def test_a_coordinator_that_forgot_costs_no_weights(tmp_path: Path):
    with cast(tmp_path, 2, "AB", DEADLINE_S) as scene:
        scene.wait_for_listeners(2)
        scene.publish(1)
        scene.served.forget()
        assert [found[:2] for found in scene.fetch()] == [expected(1)[:2]] * 2
        scene.wait_for_listeners(2)
        scene.publish(2)
        assert scene.fetch() == [expected(2)] * 2
