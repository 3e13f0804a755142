"""Groups become micro-batches of a bounded number of tokens. How they are cut never changes the update."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from algorithms import Batch, Completion, Group
from srft_ray.train.balance import cheapest_ends, sequence_length

Sequences = Sequence[tuple[Group, Completion]]  # prompt and response


@dataclass(frozen=True)
class Layout:
    """Where B sequences stand in rows of `length` tokens: each in a row, behind the ones before it.

    Attributes:
        rows_B, firsts_B: row and first position of each sequence.
        rows: how many rows there are.
    """

    rows_B: np.ndarray
    firsts_B: np.ndarray
    rows: int
    length: int

    @classmethod
    def padded(cls, lengths_B: np.ndarray) -> "Layout":
        """A row for each sequence, as long as the longest."""
        count = len(lengths_B)
        return cls(np.arange(count), np.zeros(count, dtype=np.int64), count, int(lengths_B.max()))

    @classmethod
    def packed(cls, lengths: Sequence[int], max_tokens: int) -> tuple["Layout", list[int]]:
        """Rows as long as the first and longest sequence, filled with those that fit, the longest first.

        Returns:
            The layout, and the numbers of the sequences in it; `max_tokens` decides the number of rows.
        """
        length = lengths[0]
        room = [length] * max(1, max_tokens // length)
        chosen, rows, firsts = [], [], []
        for number, own in enumerate(lengths):
            row = next((row for row, left in enumerate(room) if left >= own), None)
            if row is not None:
                chosen.append(number)
                rows.append(row)
                firsts.append(length - room[row])
                room[row] -= own
        return cls(np.array(rows), np.array(firsts), max(rows) + 1, length), chosen


@dataclass
class MicroBatch:
    """B sequences of a prompt and a response in rows of L tokens; responses aligned to T positions.

    Without packing every sequence has a row of its own, which is padded on the right.

    Attributes:
        input_ids_BL: token ids, int64.
        rows_N, positions_N: where the N scored tokens stand in `input_ids_BL` (one dummy token if there is
            none).
        batch: the algorithm's view.
        fresh_BT: bool, tokens sampled by the very policy being trained, on which parity with the engine is
            checked.
        old_BT: their log-probs before the first update of the step; None if this is the first.
        sequences: what the rows were made of; empty in a micro-batch that only keeps the ranks in step.
        position_ids_BL: of tokens within their sequence, with packing: attention ends where a position does
            not follow the one before it; None: every row is one sequence.
    """

    input_ids_BL: Tensor
    rows_N: Tensor
    positions_N: Tensor
    batch: Batch
    fresh_BT: Tensor
    old_BT: Tensor | None = None
    sequences: Sequences = ()
    position_ids_BL: Tensor | None = None

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on a device, before any `old_BT` is known."""
        tensors = {name: value for name, value in vars(self.batch).items() if isinstance(value, Tensor)}
        moved = {name: value.to(device) for name, value in tensors.items()}
        return MicroBatch(
            input_ids_BL=self.input_ids_BL.to(device),
            rows_N=self.rows_N.to(device),
            positions_N=self.positions_N.to(device),
            batch=replace(self.batch, **moved),
            fresh_BT=self.fresh_BT.to(device),
            sequences=self.sequences,
            position_ids_BL=None if self.position_ids_BL is None else self.position_ids_BL.to(device),
        )

    def align(self, values_N: Tensor) -> Tensor:
        """Values of the scored tokens -> (B, T), zeros elsewhere."""
        mask_BT = self.batch.mask_BT
        aligned_BT = torch.zeros(mask_BT.shape, dtype=values_N.dtype, device=values_N.device)
        if not mask_BT.any():
            # An empty micro-batch must reach every parameter too, or the ranks' gradient collectives part.
            return aligned_BT + 0 * values_N.sum()
        return aligned_BT.masked_scatter(mask_BT, values_N)


def trained_sequences(groups: Sequence[Group]) -> list[tuple[Group, Completion]]:
    return [(group, completion) for group in groups for completion in group.trained]


def cut(
    sequences: Sequences,
    max_tokens: int,
    step: int,
    start: int = 0,
    packing: bool = False,
) -> list[MicroBatch]:
    """Sequences in micro-batches of at most `max_tokens` tokens, padding included, longest first.

    A sequence that is longer than `max_tokens` gets a micro-batch of its own. Without packing, sequences of
    other lengths get one of their own where that saves more padding than a micro-batch costs.

    Args:
        start: the step at which the stage began.
        packing: whether a row may hold several sequences.
    """
    # Neighbours of like length need little padding, and the first row of a micro-batch is its longest.
    left = sorted(sequences, key=lambda sequence: -sequence_length(*sequence))
    micro_batches: list[MicroBatch] = []
    if not packing:
        ends = cheapest_ends([sequence_length(*sequence) for sequence in left], max_tokens)
        return [collate(left[first:end], step, start) for first, end in pairwise([0, *ends])]
    while left:
        layout, numbers = Layout.packed([sequence_length(*sequence) for sequence in left], max_tokens)
        micro_batches.append(collate([left[number] for number in numbers], step, start, layout))
        taken = set(numbers)
        left = [sequence for number, sequence in enumerate(left) if number not in taken]
    return micro_batches


def collate(
    sequences: Sequences,
    step: int,
    start: int = 0,
    packed: Layout | None = None,
) -> MicroBatch:
    """One micro-batch of sequences, padded unless `packed` says where they stand.

    Without any sequence it has one dummy row that selects nothing.
    """
    if not sequences:
        return _empty(step - start)
    completions = [completion for _, completion in sequences]
    prompts_B = np.array([len(group.prompt_ids) for group, _ in sequences])
    responses_B = np.array([len(completion.ids) for completion in completions])
    offsets_T = np.arange(responses_B.max())
    mask_BT = offsets_T < responses_B[:, None]
    for row, completion in enumerate(completions):
        for first, end in completion.observed:
            mask_BT[row, first:end] = False
    is_prefix_BT = offsets_T < np.array([c.prefix for c in completions])[:, None]
    is_demo_B = np.array([c.origin == "demo" for c in completions])
    is_replay_B = np.array([c.origin == "replay" for c in completions])
    is_of_step_BT = _sampled_by(completions, step, mask_BT.shape)
    sequences_N, offsets_N = mask_BT.nonzero()
    layout = packed or Layout.padded(prompts_B + responses_B)
    ids_BL, position_ids_BL = _token_ids(sequences, layout)
    batch = Batch(
        mask_BT=torch.from_numpy(mask_BT),
        is_demo_B=torch.from_numpy(is_demo_B),
        rewards_B=torch.tensor([float(c.reward) for c in completions]),
        advantages_B=torch.tensor([float(c.advantage) for c in completions]),
        behavior_logprobs_BT=torch.from_numpy(_behavior_logprobs(completions, mask_BT.shape)),
        step=step - start,
        max_new_tokens=sequences[0][0].max_new_tokens,
        is_prefix_BT=torch.from_numpy(is_prefix_BT),
        is_replay_B=torch.from_numpy(is_replay_B),
    )
    return MicroBatch(
        input_ids_BL=torch.from_numpy(ids_BL),
        rows_N=torch.from_numpy(layout.rows_B[sequences_N]),
        positions_N=torch.from_numpy((layout.firsts_B + prompts_B)[sequences_N] + offsets_N),
        batch=batch,
        fresh_BT=torch.from_numpy(mask_BT & is_of_step_BT & ~is_prefix_BT),
        sequences=sequences,
        position_ids_BL=torch.from_numpy(position_ids_BL) if packed else None,
    )


def _token_ids(sequences: Sequences, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and their positions within their sequences, int64 (B, L); the rest of a row is padding."""
    ids_BL = np.zeros((layout.rows, layout.length), dtype=np.int64)
    # The padding behind the sequences of a row counts from 0 too, as one more sequence.
    filled_B = np.zeros(layout.rows, dtype=np.int64)
    position_ids_BL = np.zeros_like(ids_BL)
    for (group, completion), row, first in zip(sequences, layout.rows_B, layout.firsts_B, strict=True):
        prompt_end = first + len(group.prompt_ids)
        response_end = prompt_end + len(completion.ids)
        ids_BL[row, first:prompt_end] = group.prompt_ids
        ids_BL[row, prompt_end:response_end] = completion.ids
        position_ids_BL[row, first:response_end] = np.arange(response_end - first)
        filled_B[row] = response_end
    for row, end in enumerate(filled_B):
        position_ids_BL[row, end:] = np.arange(layout.length - end)
    return ids_BL, position_ids_BL


def _sampled_by(completions: Sequence[Completion], version: int, shape: tuple[int, int]) -> np.ndarray:
    """Bool (B, T), tokens of the rollouts' spans by that policy version."""
    sampled_BT = np.zeros(shape, dtype=bool)
    for row, completion in enumerate(completions):
        if completion.origin == "rollout":
            for of_span, first, end in completion.parts:
                sampled_BT[row, first:end] = of_span == version
    return sampled_BT


def _behavior_logprobs(completions: Sequence[Completion], shape: tuple[int, int]) -> np.ndarray:
    """Of the engine, float32 (B, T); zeros for demonstrations and padding."""
    logprobs_BT = np.zeros(shape, dtype=np.float32)
    for row, completion in enumerate(completions):
        if completion.logprobs is not None:
            logprobs_BT[row, : len(completion.ids)] = completion.logprobs
    return logprobs_BT


def _empty(step: int) -> MicroBatch:
    """One row of two tokens, of which one is scored and none is selected."""
    nothing_BT = torch.zeros((1, 1), dtype=torch.bool)
    batch = Batch(
        mask_BT=nothing_BT,
        is_demo_B=torch.zeros(1, dtype=torch.bool),
        rewards_B=torch.zeros(1),
        advantages_B=torch.zeros(1),
        behavior_logprobs_BT=torch.zeros((1, 1)),
        step=step,
    )
    return MicroBatch(
        input_ids_BL=torch.zeros((1, 2), dtype=torch.int64),
        rows_N=torch.tensor([0]),
        positions_N=torch.tensor([1]),
        batch=batch,
        fresh_BT=nothing_BT,
    )
