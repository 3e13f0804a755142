"""Which rank computes a sequence: nearly equal numbers of tokens, the same answer on every rank."""

import random

import pytest

from srft_ray.train.balance import assign


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
