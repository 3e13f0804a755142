"""Sequences change their rank, and none is lost or doubled."""

import torch.distributed as dist

from algorithms import Completion, Group
from srft_ray.train.balance import exchange, sequence_length


def unbalanced(rank, world):
    """Rank 3 has long sequences, rank 0 has none."""
    for index in range(4 * rank):
        group = Group(0, 100 * rank + index, f"prompt {rank}", [1] * (index % 3 + 1), "")
        yield (
            group,
            Completion(index, "rollout", "", [2] * (rank * (index + 1)), advantage=rank + index / 100),
        )


def share(rank, world):
    """Keys and lengths of what every rank has after the exchange."""
    own = [
        (group.group_id, completion.sample, completion.advantage, sequence_length(group, completion))
        for group, completion in exchange(list(unbalanced(rank, world)))
    ]
    shares = [None] * world
    dist.all_gather_object(shares, own)
    return shares


def test_every_sequence_is_on_one_rank():
    from tests.distributed.harness import spawn

    shares = spawn(4, share)
    every = [
        (group.group_id, completion.sample, completion.advantage, sequence_length(group, completion))
        for rank in range(4)
        for group, completion in unbalanced(rank, 4)
    ]
    assert sorted(sequence for own in shares for sequence in own) == sorted(every)
    assert all(own == sorted(own) for own in shares)
    tokens = [sum(sequence[3] for sequence in own) for own in shares]
    assert max(tokens) <= 1.05 * min(tokens)
