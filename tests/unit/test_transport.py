"""Weights on their way from the learners through the coordinator to an engine, without Ray's processes."""

import asyncio
import copy
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from srft_ray.config.rollout import RolloutSection
from srft_ray.sync import node_copy
from srft_ray.sync import transport as transport_module
from srft_ray.sync.coordinator import Coordinator
from srft_ray.sync.fingerprint import FingerprintedWeights, fingerprint, folder_fingerprint
from srft_ray.sync.pieces import Rank
from srft_ray.sync.transport import ObjectStoreTransport
from srft_ray.sync.versions import OutdatedLearners, PolicyWeights, fingerprint_of

WEIGHTS = {"embed": torch.arange(12.0).view(3, 4), "norm": torch.ones(4)}
MIXED = {
    "scalar": torch.tensor(3, dtype=torch.int64),
    "odd": torch.randn(7).to(torch.bfloat16),
    "matrix": torch.randn(300, 200).T,
    "none": torch.zeros(0, 4),
    "flag": torch.tensor([True, False, True]),
    "half": torch.randn(5, 3).half(),
    "head": torch.randn(300, 200),
}


class Handle:
    """Calls a coordinator in this process as if it were an actor; it can lose its memory."""

    def __init__(self):
        self.coordinator = Coordinator(0)

    def __getattr__(self, name):
        def call(*arguments):
            return asyncio.run(getattr(self.coordinator, name)(*arguments))

        return SimpleNamespace(remote=call)

    def forget(self):
        self.coordinator = Coordinator(0)


@pytest.fixture
def handle(monkeypatch, tmp_path):
    # Tests that run at the same time have the same weights.
    monkeypatch.setattr(node_copy, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(transport_module.ray, "put", copy.deepcopy)
    monkeypatch.setattr(transport_module.ray, "get", lambda value: value)
    # The thread that publishes again is stepped by hand.
    monkeypatch.setattr(ObjectStoreTransport, "_start_republisher", lambda self: None)
    return Handle()


def make_transport(handle, generation=0, rank=None):
    made = ObjectStoreTransport(handle, RolloutSection(transport_chunk_mb=1, timeout_s=0.1), generation)
    made.rank = rank or made.rank
    return made


def offered(handle):
    return handle.coordinator.versions.offered


def newest(handle):
    return offered(handle).version


def fetch(handle):
    """What an engine finds: (version, fingerprint of the files, tensors)."""
    found = []

    def reload(folder):
        files = sorted(folder.glob("*.safetensors"))
        tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
        found.extend([folder_fingerprint(folder), tensors])

    return make_transport(handle).fetch(reload, offered(handle)), *found


def test_the_engine_has_the_fingerprint_that_was_published(handle):
    start = handle.restart.remote(3)
    learner = make_transport(handle, start.generation)
    weights = FingerprintedWeights(WEIGHTS.items())
    learner.publish(3, weights, sender=True)
    expected = fingerprint(WEIGHTS.items())
    assert fingerprint_of(weights.exhaust()) == expected
    assert handle.admit.remote(handle.coordinator.versions.generation, 3).offered == PolicyWeights(
        3, expected
    )
    version, found, tensors = fetch(handle)
    assert (version, found) == (3, expected)
    assert all(torch.equal(tensors[name], WEIGHTS[name]) for name in WEIGHTS)


def test_two_engines_of_a_node_load_from_one_folder_and_one_asks_for_the_pieces(handle, monkeypatch):
    make_transport(handle, handle.restart.remote(3).generation).publish(3, iter(WEIGHTS.items()), True)
    folders, asked = [], []
    read = handle.coordinator.versions.read
    monkeypatch.setattr(handle.coordinator.versions, "read", lambda: asked.append(1) or read())

    def reload(folder):
        folders.append(folder)
        if len(folders) == 1:
            make_transport(handle).fetch(reload, offered(handle))
        assert folder_fingerprint(folder) == fingerprint(WEIGHTS.items())

    make_transport(handle).fetch(reload, offered(handle))
    assert len(folders) == 2 and folders[0] == folders[1] and not folders[0].exists()
    assert len(asked) == 1


def test_an_engine_that_was_offered_a_version_that_is_replaced_loads_the_newer_one(handle):
    generation = handle.restart.remote(3).generation
    make_transport(handle, generation).publish(3, iter(WEIGHTS.items()), True)
    before = offered(handle)
    make_transport(handle, generation).publish(4, iter(MIXED.items()), True)
    found = []
    version = make_transport(handle).fetch(lambda folder: found.append(folder_fingerprint(folder)), before)
    assert (version, found) == (4, [fingerprint(MIXED.items())])


def test_a_transport_that_replaces_the_weights_cannot_replace_the_learners_fingerprint(handle):
    start = handle.restart.remote(3)
    first = [(name, tensor + 1) for name, tensor in WEIGHTS.items()]
    weights = FingerprintedWeights(WEIGHTS.items())
    make_transport(handle, start.generation).publish(3, iter(first), sender=True)
    given = fingerprint_of(weights.exhaust())
    assert given == fingerprint(WEIGHTS.items()) != fetch(handle)[1] == fingerprint(first)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_rank_sends_an_equal_part_and_the_engine_has_all(handle, ranks):
    generation = handle.restart.remote(3).generation
    sent = []
    for number in reversed(range(ranks)):
        assert newest(handle) == -1
        rank = Rank(number, ranks)
        weights = FingerprintedWeights(MIXED.items(), rank)
        learner = make_transport(handle, generation, rank)
        learner.piece_bytes = 50_000
        learner.publish(3, weights, sender=number == 0)
        assert next(weights, None) is None
        sent.append(sum(piece.nbytes for piece in learner._share.pieces))
    total = sum(tensor.nbytes for tensor in MIXED.values())
    assert sum(sent) == total
    assert all(abs(count - total / ranks) <= len(MIXED) < 0.001 * total for count in sent)
    version, found, tensors = fetch(handle)
    assert (version, found) == (3, fingerprint(MIXED.items()))
    assert tensors.keys() == MIXED.keys()
    assert all(torch.equal(tensors[name], MIXED[name]) for name in MIXED)


def test_each_rank_tells_a_coordinator_that_forgot(handle):
    generation = handle.restart.remote(3).generation
    learners = [make_transport(handle, generation, Rank(number, 2)) for number in range(2)]
    for number, learner in enumerate(learners):
        learner.publish(3, iter(MIXED.items()), sender=number == 0)
    assert newest(handle) == 3
    handle.forget()
    for number, learner in enumerate(learners):
        assert newest(handle) == -1 and not handle.has_share.remote(generation, 3, number)
        learner._send()
        learner._send()
    assert fetch(handle)[:2] == (3, fingerprint(MIXED.items()))


def test_learners_of_an_earlier_start_cannot_publish(handle):
    old = make_transport(handle, handle.restart.remote(0).generation)
    new = make_transport(handle, handle.restart.remote(0).generation)
    with pytest.raises(OutdatedLearners):
        old.publish(1, iter(WEIGHTS.items()), sender=True)
    new.publish(0, iter(WEIGHTS.items()), sender=True)
    assert handle.admit.remote(handle.coordinator.versions.generation, 0).offered == PolicyWeights(
        0, fingerprint(WEIGHTS.items())
    )


def test_a_coordinator_that_forgot_is_given_the_weights_again(handle, monkeypatch):
    start = handle.restart.remote(3)
    learner = make_transport(handle, start.generation)
    learner.publish(3, iter(WEIGHTS.items()), sender=True)
    handle.forget()
    assert newest(handle) == -1

    class Enough(Exception):
        """Ends the loop after its second round."""

    rounds = iter([None, None])

    def pause(seconds):
        if next(rounds, Enough) is Enough:
            raise Enough

    monkeypatch.setattr(transport_module.time, "sleep", pause)
    monkeypatch.setattr(transport_module, "REPUBLISH_WAIT_S", 0.0)  # calls of this handle do not overlap
    with pytest.raises(Enough):
        learner._republish_loop()
    assert newest(handle) == 3 and fetch(handle)[1] == fingerprint(WEIGHTS.items())
    # Learners that others have replaced end their loop instead.
    handle.restart.remote(2)
    rounds = iter([None, None])
    learner._republish_loop()


def test_a_publication_that_nobody_takes_is_an_error(handle):
    class Busy(Handle):
        def __getattr__(self, name):
            def refuse(*arguments):
                raise RuntimeError("no memory")

            return SimpleNamespace(remote=refuse) if name == "publish" else super().__getattr__(name)

    broken = Busy()
    learner = make_transport(broken, broken.restart.remote(3).generation)
    with pytest.raises(
        TimeoutError, match=r"did not take policy version 3 within rollout.timeout_s=0 s: no memory"
    ):
        learner.publish(3, iter(WEIGHTS.items()), sender=True)
