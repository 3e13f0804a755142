"""Which rank computes a sequence, and with which others: neither changes the update.

Ranks receive equal numbers of groups, but the lengths of responses are skewed, and all ranks wait for the one
with the most tokens: sequences are exchanged between ranks, so that every rank computes about as many. Rows
of a micro-batch are as long as its longest: sequences of other lengths get micro-batches of their own.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch.distributed as dist

from algorithms import Completion, Group

BALANCED = 1.02  # most tokens of a rank, divided by the fewest, with which all sequences stay where they are
# What one more micro-batch costs, as tokens: kernels are launched and, under ZeRO, parameters gathered again.
MICRO_BATCH_COST = 512
PREFERENCE = 0.01  # share of a rank's tokens that may be uneven in order to leave one sequence where it is


def exchange(
    sequences: Sequence[tuple[Group, Completion]], with_demonstrations: bool = False
) -> list[tuple[Group, Completion]]:
    """This rank's share of the sequences of all ranks, ordered by group and sample; a collective.

    A sequence from another rank comes with its group, which then holds no completions, or only the
    demonstrations.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if world_size == 1:
        return list(sequences)
    lengths: list[list[int]] = [[] for _ in range(world_size)]
    dist.all_gather_object(lengths, [sequence_length(*sequence) for sequence in sequences])
    own_destinations = assign(lengths)[rank]
    leaving = []
    kept = []
    for sequence, destination in zip(sequences, own_destinations, strict=True):
        if destination == rank:
            kept.append(sequence)
        else:
            group, completion = sequence
            kept_with_it = group.demonstrations if with_demonstrations else []
            leaving.append((destination, replace(group, completions=kept_with_it), completion))
    shares: list[list[tuple[int, Group, Completion]]] = [[] for _ in range(world_size)]
    dist.all_gather_object(shares, leaving)
    arriving = [
        (group, completion)
        for share in shares
        for destination, group, completion in share
        if destination == rank
    ]
    return sorted(kept + arriving, key=lambda sequence: (sequence[0].group_id, sequence[1].sample))


def assign(lengths: Sequence[Sequence[int]]) -> list[list[int]]:
    """The rank that each sequence goes to, from the lengths of each rank's sequences; in the same order.

    The longest sequence first, each goes to the rank with the fewest tokens so far: the greedy rule of
    scheduling, whose largest sum is at most 4/3 of the smallest possible one (Graham 1969). Unlike in that
    rule, a sequence stays where it is if its rank has at most PREFERENCE of a mean rank's tokens more than
    that. Graham's proof then gives a bound that is larger by as much, 4/3 + PREFERENCE.
    """
    before = [sum(own) for own in lengths]
    if max(before) <= BALANCED * min(before):
        return [[rank] * len(own) for rank, own in enumerate(lengths)]
    slack = PREFERENCE * sum(before) / len(before)
    every = [(length, rank, index) for rank, own in enumerate(lengths) for index, length in enumerate(own)]
    every.sort(key=lambda sequence: (-sequence[0], *sequence[1:]))
    tokens = [0] * len(lengths)
    destinations = [[-1] * len(own) for own in lengths]
    for length, rank, index in every:
        lightest = tokens.index(min(tokens))
        stays = tokens[rank] <= tokens[lightest] + slack
        destination = rank if stays else lightest
        destinations[rank][index] = destination
        tokens[destination] += length
    return destinations


def sequence_length(group: Group, completion: Completion) -> int:
    """Tokens of prompt and response."""
    return len(group.prompt_ids) + len(completion.ids)


def cheapest_ends(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Where micro-batches of sequences, longest first, end, so that padding and micro-batches cost least."""
    count = len(lengths)
    cost = np.zeros(count + 1, dtype=np.int64)  # of the sequences from a number on
    ends = np.zeros(count, dtype=np.int64)  # of the micro-batch that begins with a number
    for first in reversed(range(count)):
        rows = np.arange(1, min(max(1, max_tokens // lengths[first]), count - first) + 1)
        costs = rows * lengths[first] + cost[first + rows]
        best = int(costs.argmin())
        cost[first], ends[first] = costs[best] + MICRO_BATCH_COST, first + rows[best]
    chosen = []
    end = 0
    while end < count:
        end = int(ends[end])
        chosen.append(end)
    return chosen
