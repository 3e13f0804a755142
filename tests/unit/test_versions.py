"""Versions of the policy: which of them are whole, who may publish them, and who may start with them."""

from dataclasses import replace

import pytest

from srft_ray.sync.versions import (
    UNKNOWN,
    OutdatedLearners,
    PolicyWeights,
    PublishedVersions,
    WeightShare,
    fingerprint_of,
)


def share(version, *pieces, rank=0, hashes=0xAB, ranks=1):
    """What the sender publishes (rank 0), or another one."""
    headers = {"model": b"header"} if rank == 0 else {}
    return WeightShare(version, rank, hashes, pieces, ranks if rank == 0 else 0, headers)


def weights(version, hashes=0xAB):
    return PolicyWeights(version, fingerprint_of(hashes))


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_a_group_starts_within_the_staleness_bound(max_staleness):
    versions = PublishedVersions(max_staleness)
    versions.restart(0, now=0.1)
    for version in range(4):
        admitted = [step for step in range(10) if versions.admits(versions.generation, step, exact=False)]
        assert admitted == list(range(version + max_staleness + 1))
        exactly = [step for step in range(10) if versions.admits(versions.generation, step, exact=True)]
        assert exactly == list(range(version + 1))
        versions.publish(100, share(version + 1))


def test_nobody_starts_before_the_checkpoint_is_published():
    versions = PublishedVersions(1)
    versions.restart(5, now=0.1)
    assert versions.starts[0].step == 5 and versions.offered.version == UNKNOWN
    assert not versions.admits(versions.generation, 5, exact=False) and not versions.admits(
        versions.generation, 0, exact=False
    )
    versions.publish(100, share(5, "weights"))
    assert versions.admits(versions.generation, 6, exact=False) and not versions.admits(
        versions.generation, 7, exact=False
    )
    read = versions.read()
    assert (read.weights, read.pieces, read.headers) == (weights(5), ["weights"], {"model": b"header"})


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_a_version_is_published_whole_or_not_at_all(order):
    versions = PublishedVersions(0)
    versions.restart(0, now=0.1)
    shares = [share(1, f"piece {rank}", rank=rank, hashes=2**64 - 1, ranks=3) for rank in range(3)]
    for rank in order[:2]:
        versions.publish(100, shares[rank])
        versions.publish(100, shares[rank])
        assert versions.has(100, 1, rank)
    assert not versions.has(100, 1, order[2])
    assert versions.read().weights == PolicyWeights(0) and not versions.read().pieces
    versions.publish(100, shares[order[2]])
    assert versions.read().weights == PolicyWeights(1, "f" * 15 + "d")
    assert versions.read().pieces == ["piece 0", "piece 1", "piece 2"]
    # Shares of one version never become a part of the next.
    for rank in range(2):
        versions.publish(100, share(2, "next", rank=rank, ranks=3))
    versions.publish(100, shares[2])
    assert versions.offered.version == 1
    versions.publish(100, share(2, "next", rank=2, ranks=3))
    assert versions.read().pieces == ["next"] * 3


def test_shares_of_a_version_that_another_one_overtook_are_dropped():
    """The process died while a version arrived; the ranks sent it and the next one again, in any order."""
    versions = PublishedVersions(0, forgot=True)
    versions.publish(100, share(1, "old", rank=1))
    for rank in range(2):
        versions.publish(100, share(2, "new", rank=rank, ranks=2))
    assert versions.read().pieces == ["new", "new"] and versions.has(100, 1, 0)
    versions.publish(100, share(1, "old", rank=0, ranks=2))
    assert versions.offered.version == 2


def test_what_earlier_learners_told_a_coordinator_without_memory_is_not_offered_any_more():
    versions = PublishedVersions(0, forgot=True)
    versions.publish(100, share(7, "of the earlier learners"))
    versions.publish(101, share(7, "of the present ones", ranks=2))
    assert versions.offered == PolicyWeights(UNKNOWN)
    versions.publish(101, share(7, "of the present ones", rank=1))
    assert versions.read().pieces == ["of the present ones"] * 2


def test_publications_that_nobody_reads_are_counted():
    versions = PublishedVersions(0)
    versions.restart(0, now=0.1)
    unread = []
    for version, read in ((1, True), (2, False), (3, False), (4, True)):
        versions.publish(100, share(version, "weights"))
        unread.append(versions.unread)
        if read:
            versions.read()
    # The newest may still be read; what a new start of the learners replaces was not published in vain.
    versions.restart(3, now=0.2)
    assert unread == [0, 0, 1, 2] and versions.unread == 2


def test_a_coordinator_without_memory_admits_nobody():
    versions = PublishedVersions(3)
    assert not versions.admits(versions.generation, 0, exact=False)
    with pytest.raises(RuntimeError, match="restarted while the learners started"):
        _ = versions.starts
    versions.publish(100, share(7, "weights"))
    assert versions.admits(versions.generation, 10, exact=False)


def test_what_learners_of_an_earlier_start_publish_is_refused():
    versions = PublishedVersions(0)
    first = versions.restart(0, now=0.1)
    second = versions.restart(4, now=0.05)
    assert (first.generation, second.generation) == (100, 101)
    with pytest.raises(OutdatedLearners, match="learners of start 100 published, but start 101"):
        versions.publish(first.generation, share(9, "old"))
    with pytest.raises(OutdatedLearners):
        versions.has(first.generation, 9, 0)
    assert versions.offered == PolicyWeights(UNKNOWN)
    versions.publish(second.generation, share(4, "new", hashes=0xCD))
    assert versions.offered == weights(4, 0xCD)


def test_generations_increase_although_the_last_one_is_forgotten():
    before = PublishedVersions(0).restart(0, now=0.1)
    versions = PublishedVersions(0, forgot=True)
    # The present learners go on with what they have, and are known from then on.
    versions.publish(before.generation, share(3))
    assert versions.generation == before.generation
    assert versions.restart(3, now=0.1).generation > before.generation
    # Those of a start between two deaths of the actor are refused too, because time has passed.
    versions = PublishedVersions(0, forgot=True)
    versions.restart(3, now=0.16)
    with pytest.raises(OutdatedLearners):
        versions.publish(before.generation, share(4))


def test_only_in_the_first_start_engines_hold_the_model_already():
    versions = PublishedVersions(0)
    assert versions.restart(0, now=1.0).from_model and versions.offered == PolicyWeights(0)
    assert not versions.restart(0, now=1.0).from_model and versions.offered == PolicyWeights(UNKNOWN)
    assert not PublishedVersions(0, forgot=True).restart(0, now=1.0).from_model
    assert not PublishedVersions(0).restart(2, now=1.0).from_model


def test_pieces_that_learners_keep_come_when_they_are_asked_for():
    versions = PublishedVersions(0)
    versions.restart(0, now=0.1)

    def kept(version, rank):
        return replace(share(version, rank=rank, ranks=2), pieces=None)

    def given(version, rank):
        return share(version, f"piece {rank}", rank=rank, ranks=2)

    for version in (1, 2):
        for rank in (0, 1):
            versions.publish(100, kept(version, rank))
    assert versions.offered == weights(2, 2 * 0xAB) and versions.read().pieces is None
    versions.publish(100, given(2, 0))
    versions.ask_for_pieces(1)
    assert versions.has(100, 2, 0) and versions.has(100, 2, 1), "nobody has asked for them"
    versions.ask_for_pieces(2)
    # A rank asks about the version that was the newest one when it did.
    assert not any(versions.has(100, version, rank) for version in (1, 2) for rank in (0, 1))
    versions.publish(100, given(1, 0))
    versions.publish(100, kept(2, 1))
    versions.publish(100, given(2, 0))
    assert versions.has(100, 2, 0) and not versions.has(100, 2, 1) and versions.read().pieces is None
    versions.publish(100, given(2, 1))
    assert versions.has(100, 2, 1) and versions.read().pieces == ["piece 0", "piece 1"]
    assert versions.read().weights == weights(2, 2 * 0xAB) and versions.read().headers
    # They are asked for anew in each version.
    for rank in (0, 1):
        versions.publish(100, kept(3, rank))
    assert versions.has(100, 3, 0) and versions.read().pieces is None
