"""Which rank computes a sequence: nearly equal numbers of tokens, the same answer on every rank."""

import itertools
import random

import pytest

from algorithms import Completion, Group
from srft_ray.train import balance
from srft_ray.train.balance import MICRO_BATCH_COST, assign, cheapest_ends


def skewed(ranks: int, count: int, seed: int) -> list[list[int]]:
    """Lengths with a long tail, longer on some ranks than on others; the longest are 8192."""
    rng = random.Random(seed)
    return [
        [min(8192, int(100 * (1 + rank % 3) * rng.paretovariate(1.2))) for _ in range(count)]
        for rank in range(ranks)
    ]


def tokens(lengths: list[list[int]], destinations: list[list[int]]) -> list[int]:
    sums = [0] * len(lengths)
    for own, chosen in zip(lengths, destinations, strict=True):
        for length, destination in zip(own, chosen, strict=True):
            sums[destination] += length
    return sums


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("seed", range(5))
def test_ranks_differ_by_less_than_5_percent(ranks: int, seed: int) -> None:
    lengths = skewed(ranks, 64, seed)
    before = [sum(own) for own in lengths]
    after = tokens(lengths, assign(lengths))
    assert sum(after) == sum(before)
    assert max(before) > 1.05 * min(before), "there is nothing to balance"
    assert max(after) <= 1.05 * min(after)


def test_what_is_balanced_stays() -> None:
    assert assign([[5, 5], [5, 5]]) == [[0, 0], [1, 1]]


def test_a_rank_without_sequences_gets_some() -> None:
    assert assign([[9, 1, 4, 4], []]) == [[0, 1, 1, 1], []]


class OneOfTwo:
    """Rank 0 of two, whose other rank has no sequences; what it sends is kept."""

    def __init__(self) -> None:
        self.sent: list[list[tuple]] = []

    def get_rank(self) -> int:
        return 0

    def get_world_size(self) -> int:
        return 2

    def all_gather_object(self, shares: list, own: list) -> None:
        self.sent.append(own)
        shares[:] = [own, []]


@pytest.mark.parametrize("with_demonstrations", [False, True])
def test_a_sequence_travels_with_a_demonstration_only_where_one_is_needed(monkeypatch, with_demonstrations):
    demonstrations = [Completion(sample, "demo", "", [1, 2]) for sample in (2, 3)]
    rollouts = [Completion(sample, "rollout", "", [1] * 9, [0.0] * 9) for sample in (0, 1)]
    group = Group(0, 0, "", [5], "", completions=[*rollouts, *demonstrations])
    ranks = OneOfTwo()
    monkeypatch.setattr(balance, "dist", ranks)
    kept = balance.exchange([(group, rollout) for rollout in rollouts], with_demonstrations)
    ((_, sent, _),) = ranks.sent[1]
    assert sent.completions == (demonstrations if with_demonstrations else [])
    assert len(kept) == 1 and kept[0][0] is group


def cost(lengths: list[int], ends: tuple[int, ...]) -> int:
    parts = itertools.pairwise([0, *ends])
    return sum(MICRO_BATCH_COST + (end - first) * lengths[first] for first, end in parts)


@pytest.mark.parametrize("seed", range(20))
def test_no_other_micro_batches_cost_less(seed: int) -> None:
    """Of all ways to cut few sequences into micro-batches that are not too large."""
    rng = random.Random(seed)
    lengths = sorted((int(20 * rng.paretovariate(0.7)) for _ in range(9)), reverse=True)
    most = rng.choice([max(lengths), 2 * max(lengths), 10**6])
    cuts = [
        (*inner, len(lengths))
        for count in range(len(lengths))
        for inner in itertools.combinations(range(1, len(lengths)), count)
    ]
    allowed = [
        ends
        for ends in cuts
        if all((end - first) * lengths[first] <= most for first, end in itertools.pairwise([0, *ends]))
    ]
    chosen = tuple(cheapest_ends(lengths, most))
    assert chosen in allowed
    assert cost(lengths, chosen) == min(cost(lengths, ends) for ends in allowed)


def test_short_sequences_are_not_padded_to_a_long_one() -> None:
    assert cheapest_ends([1000] + [50] * 60, 10**6) == [1, 61]
    assert cheapest_ends([5000, 10], 3000) == [1, 2], "a sequence that is too long has one of its own"
    assert cheapest_ends([], 3000) == []
