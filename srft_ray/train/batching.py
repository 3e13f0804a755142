"""Groups become micro-batches of a bounded number of tokens. How they are cut never changes the update."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from algorithms import Batch, Completion, Group
from srft_ray.train.balance import sequence_length

Sequences = Sequence[tuple[Group, Completion]]  # prompt and response


@dataclass
class MicroBatch:
    """B sequences of a prompt and a response, right-padded to L tokens; responses aligned to T positions.

    Attributes:
        input_ids_BL: token ids, int64.
        rows_N, positions_N: where the N scored tokens stand in `input_ids_BL` (one dummy token if there is
            none).
        batch: the algorithm's view.
        fresh_BT: bool, tokens sampled by the very policy being trained, on which parity with the engine is
            checked.
        old_BT: their log-probs before the first update of the step; None if this is the first.
        sequences: what the rows were made of; empty in a micro-batch that only keeps the ranks in step.
    """

    input_ids_BL: Tensor
    rows_N: Tensor
    positions_N: Tensor
    batch: Batch
    fresh_BT: Tensor
    old_BT: Tensor | None = None
    sequences: Sequences = ()

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
        )

    def align(self, values_N: Tensor) -> Tensor:
        """Values of the scored tokens -> (B, T), zeros elsewhere."""
        mask_BT = self.batch.mask_BT
        aligned_BT = torch.zeros(mask_BT.shape, dtype=values_N.dtype, device=values_N.device)
        if not mask_BT.any():
            # An empty micro-batch must reach every parameter too, or the ranks' gradient collectives part.
            return aligned_BT + 0 * values_N.sum()
        return aligned_BT.masked_scatter(mask_BT, values_N)


def pack(groups: Sequence[Group], max_tokens: int, step: int, start: int = 0) -> list[MicroBatch]:
    """All trained sequences of the groups, as `cut` makes micro-batches of them."""
    return cut(trained_sequences(groups), max_tokens, step, start)


def trained_sequences(groups: Sequence[Group]) -> list[tuple[Group, Completion]]:
    return [(group, completion) for group in groups for completion in group.trained]


def cut(sequences: Sequences, max_tokens: int, step: int, start: int = 0) -> list[MicroBatch]:
    """Sequences in micro-batches of `max_tokens` padded tokens, longest first.

    A sequence that is longer than `max_tokens` gets a micro-batch of its own.

    Args:
        start: the step at which the stage began.
    """
    # Neighbours of like length need little padding, and the first row of a micro-batch is its longest.
    ordered = sorted(sequences, key=lambda sequence: -sequence_length(*sequence))
    micro_batches: list[MicroBatch] = []
    first = 0
    while first < len(ordered):
        rows = max(1, max_tokens // sequence_length(*ordered[first]))
        micro_batches.append(collate(ordered[first : first + rows], step, start))
        first += rows
    return micro_batches


def collate(sequences: Sequences, step: int, start: int = 0) -> MicroBatch:
    """Pads sequences into one micro-batch; without any it has one dummy row that selects nothing."""
    if not sequences:
        return _empty(step - start)
    completions = [completion for _, completion in sequences]
    prompts_B = np.array([len(group.prompt_ids) for group, _ in sequences])
    responses_B = np.array([len(completion.ids) for completion in completions])
    offsets_T = np.arange(responses_B.max())
    mask_BT = offsets_T < responses_B[:, None]
    is_prefix_BT = offsets_T < np.array([c.prefix for c in completions])[:, None]
    is_demo_B = np.array([c.origin == "demo" for c in completions])
    is_fresh_B = np.array([c.policy_version == step for c in completions]) & ~is_demo_B
    rows_N, offsets_N = mask_BT.nonzero()
    batch = Batch(
        mask_BT=torch.from_numpy(mask_BT),
        is_demo_B=torch.from_numpy(is_demo_B),
        rewards_B=torch.tensor([float(c.reward) for c in completions]),
        advantages_B=torch.tensor([float(c.advantage) for c in completions]),
        behavior_logprobs_BT=torch.from_numpy(_behavior_logprobs(completions, mask_BT.shape)),
        step=step - start,
        max_new_tokens=sequences[0][0].max_new_tokens,
        is_prefix_BT=torch.from_numpy(is_prefix_BT),
    )
    return MicroBatch(
        input_ids_BL=torch.from_numpy(_input_ids(sequences, int((prompts_B + responses_B).max()))),
        rows_N=torch.from_numpy(rows_N),
        positions_N=torch.from_numpy(prompts_B[rows_N] + offsets_N),
        batch=batch,
        fresh_BT=torch.from_numpy(mask_BT & is_fresh_B[:, None] & ~is_prefix_BT),
        sequences=sequences,
    )


def _input_ids(sequences: Sequences, length: int) -> np.ndarray:
    """Prompt and response of each sequence, then padding: int64 (B, L)."""
    input_ids_BL = np.zeros((len(sequences), length), dtype=np.int64)
    for row, (group, completion) in enumerate(sequences):
        prompt_end = len(group.prompt_ids)
        response_end = prompt_end + len(completion.ids)
        input_ids_BL[row, :prompt_end] = group.prompt_ids
        input_ids_BL[row, prompt_end:response_end] = completion.ids
    return input_ids_BL


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
