"""What an algorithm derives from all sequences of a step, on whichever ranks they are.

Every rank learns the same few figures of every sequence, in one order, so that what an algorithm makes of
them does not depend on the number of ranks.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from algorithms import Algorithm, Group, PolicyOutput, SequenceRecord, selections
from srft_ray.train.batching import MicroBatch

Key = tuple[int, int]  # group_id and sample


def gather(algorithm: Algorithm, groups: Sequence[Group], updates: int) -> list[SequenceRecord]:
    """Of all completions of the step on all ranks, ordered by group and sample; a collective.

    Empty if no term of the algorithm needs values.
    """
    if "values" not in algorithm.needs:
        return []
    own = [
        SequenceRecord(
            group_id=group.group_id,
            sample=completion.sample,
            origin=completion.origin,
            update=group.group_id % updates,
            length=completion.written,
            prefix=completion.prefix,
            reward=float(completion.reward),
            advantage=float(completion.advantage),
            trained=completion.trained,
            seed=int(completion.seed),
        )
        for group in groups
        for completion in group.completions
    ]
    return sorted(_from_all_ranks(own), key=_key)


def attach(
    algorithm: Algorithm, records: Sequence[SequenceRecord], micro_batches: Sequence[MicroBatch]
) -> None:
    """Gives each micro-batch the values of its own sequences, if the algorithm needs any.

    Raises:
        ValueError: the algorithm does not give one figure per record.
    """
    if "values" not in algorithm.needs:
        return
    numbers = {_key(record): number for number, record in enumerate(records)}
    for name, figures in algorithm.sequence_values(records).items():
        if len(figures) != len(records):
            found = f"{len(figures)} figures of {len(records)} records"
            raise ValueError(f"sequence_values() of {algorithm.name} gives '{name}' with {found}")
        for micro_batch in micro_batches:
            own = [figures[numbers[key]] for key in _keys(micro_batch)]
            _set_value(micro_batch, name, own)


def refresh(
    algorithm: Algorithm,
    records: Sequence[SequenceRecord],
    micro_batches: Sequence[MicroBatch],
    policies: Sequence[PolicyOutput],
) -> None:
    """Gives the micro-batches of an update values that follow from its log-probs; a collective."""
    own: list[tuple[Key, float, float]] = []
    for micro_batch, policy in zip(micro_batches, policies, strict=True):
        keys = _keys(micro_batch)
        masked = policy.where(micro_batch.batch.mask_BT)
        sums = _sums(masked.logprobs_BT, len(keys))
        own += zip(keys, sums, _sums(masked.reference_logprobs_BT, len(keys)), strict=True)
    known = {key: sums for key, *sums in _from_all_ranks(own)}
    updated = []
    for record in records:
        logprob, reference_logprob = known.get(_key(record), (0.0, 0.0))
        updated.append(replace(record, logprob=logprob, reference_logprob=reference_logprob))
    attach(algorithm, updated, micro_batches)
    if "token_scores" in algorithm.needs:
        _attach_cutoffs(algorithm, micro_batches, policies)


def _attach_cutoffs(
    algorithm: Algorithm, micro_batches: Sequence[MicroBatch], policies: Sequence[PolicyOutput]
) -> None:
    """Gives all sequences what follows from the scores of the update's tokens; a collective."""
    own = []
    for micro_batch, policy in zip(micro_batches, policies, strict=True):
        batch = micro_batch.batch
        scores_BT = algorithm.score(batch, replace(policy, old_logprobs_BT=micro_batch.old_BT))
        own += scores_BT[selections.rollouts(batch)].double().tolist()
    scores = torch.tensor(_from_all_ranks(own), dtype=torch.float64)
    for name, value in algorithm.cutoffs(scores).items():
        for micro_batch in micro_batches:
            batch = micro_batch.batch
            figures_B = scores.new_full((batch.mask_BT.shape[0],), value).to(batch.mask_BT.device)
            batch.values = {**batch.values, name: figures_B}


def _sums(logprobs_BT: Tensor | None, rows: int) -> list[float]:
    """log π(y|x) of each sequence; zeros if there are no log-probs."""
    if logprobs_BT is None:
        return [0.0] * rows
    return logprobs_BT.double().sum(-1)[:rows].tolist()


def _set_value(micro_batch: MicroBatch, name: str, own: Sequence[float]) -> None:
    """The micro-batch that only keeps the ranks in step has one row, which nothing selects."""
    batch = micro_batch.batch
    value_B = torch.tensor(own or [0.0], dtype=torch.float32, device=batch.mask_BT.device)
    if name == "advantages":
        batch.advantages_B = value_B
    batch.values = {**batch.values, name: value_B}


def _from_all_ranks(own: Sequence[Any]) -> list[Any]:
    """The elements of all ranks' sequences, one rank's after another's."""
    shares: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(shares, list(own))
    return [element for share in shares for element in share]


def _keys(micro_batch: MicroBatch) -> list[Key]:
    return [(group.group_id, completion.sample) for group, completion in micro_batch.sequences]


def _key(record: SequenceRecord) -> Key:
    return record.group_id, record.sample
