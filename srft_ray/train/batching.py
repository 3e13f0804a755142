"""Groups to micro-batches of a bounded number of tokens. How they are cut never changes the update."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from algorithms import Batch, Completion, Group


@dataclass
class MicroBatch:
    """B sequences of a prompt and a response, right-padded to L tokens; responses aligned to T positions.

    Attributes:
        rows_N, positions_N: where the N scored tokens stand in `input_ids_BL` (one dummy token if there is none).
        batch: the algorithm's view.
        fresh_BT: tokens sampled by the very policy being trained, on which parity with the engine is checked.
        old_BT: their log-probs before the first update of the step; None if this is the first.
    """

    input_ids_BL: Tensor
    rows_N: Tensor
    positions_N: Tensor
    batch: Batch
    fresh_BT: Tensor
    old_BT: Tensor | None = None

    def to(self, device: torch.device) -> "MicroBatch":
        move = {
            name: value.to(device) for name, value in vars(self.batch).items() if isinstance(value, Tensor)
        }
        batch = replace(self.batch, **move)
        return MicroBatch(
            self.input_ids_BL.to(device),
            self.rows_N.to(device),
            self.positions_N.to(device),
            batch,
            self.fresh_BT.to(device),
        )

    def align(self, values_N: Tensor) -> Tensor:
        """Values of the scored tokens -> (B, T), zeros elsewhere."""
        aligned_BT = torch.zeros(self.batch.mask_BT.shape, dtype=values_N.dtype, device=values_N.device)
        if not self.batch.mask_BT.any():
            return (
                aligned_BT + 0 * values_N.sum()
            )  # keeps every parameter in the graph of an empty micro-batch
        return aligned_BT.masked_scatter(self.batch.mask_BT, values_N)


def pack(groups: Sequence[Group], max_tokens: int, step: int, start: int = 0) -> list[MicroBatch]:
    """All trained sequences of the groups in micro-batches of at most `max_tokens` padded tokens, longest first; the stage began at `start`."""
    pairs = [(group, completion) for group in groups for completion in group.trained]
    pairs.sort(key=lambda pair: -_length(pair))
    micro_batches: list[MicroBatch] = []
    while pairs:
        rows = max(1, max_tokens // _length(pairs[0]))
        micro_batches.append(collate(pairs[:rows], step, start))
        pairs = pairs[rows:]
    return micro_batches


def collate(pairs: Sequence[tuple[Group, Completion]], step: int, start: int = 0) -> MicroBatch:
    """Pads sequences into one micro-batch; an empty list gives one dummy row that selects nothing."""
    if not pairs:
        return _empty(step - start)
    prompts = np.array([len(group.prompt_ids) for group, _ in pairs])
    responses = np.array([len(completion.ids) for _, completion in pairs])
    input_ids_BL = np.zeros((len(pairs), int((prompts + responses).max())), dtype=np.int64)
    behavior_BT = np.zeros((len(pairs), int(responses.max())), dtype=np.float32)
    for row, (group, completion) in enumerate(pairs):
        input_ids_BL[row, : prompts[row]] = group.prompt_ids
        input_ids_BL[row, prompts[row] : prompts[row] + responses[row]] = completion.ids
        if completion.logprobs is not None:
            behavior_BT[row, : responses[row]] = completion.logprobs
    places = np.arange(behavior_BT.shape[1])[None]
    mask_BT = places < responses[:, None]
    rows_N, offsets_N = mask_BT.nonzero()
    completions = [completion for _, completion in pairs]
    is_demo_B = np.array([c.origin == "demo" for c in completions])
    is_prefix_BT = places < np.array([c.prefix for c in completions])[:, None]
    fresh_B = np.array([c.policy_version == step for c in completions]) & ~is_demo_B
    batch = Batch(
        torch.from_numpy(mask_BT),
        torch.from_numpy(is_demo_B),
        torch.tensor([float(c.reward) for c in completions]),
        torch.tensor([float(c.advantage) for c in completions]),
        torch.from_numpy(behavior_BT),
        step - start,
        pairs[0][0].max_new_tokens,
        torch.from_numpy(is_prefix_BT),
    )
    return MicroBatch(
        torch.from_numpy(input_ids_BL),
        torch.from_numpy(rows_N),
        torch.from_numpy(prompts[rows_N] + offsets_N),
        batch,
        torch.from_numpy(mask_BT & fresh_B[:, None] & ~is_prefix_BT),
    )


def _empty(step: int) -> MicroBatch:
    nothing = torch.zeros((1, 1), dtype=torch.bool)
    batch = Batch(
        nothing, torch.zeros(1, dtype=torch.bool), torch.zeros(1), torch.zeros(1), torch.zeros((1, 1)), step
    )
    return MicroBatch(
        torch.zeros((1, 2), dtype=torch.int64), torch.tensor([0]), torch.tensor([1]), batch, nothing
    )


def _length(pair: tuple[Group, Completion]) -> int:
    return len(pair[0].prompt_ids) + len(pair[1].ids)
