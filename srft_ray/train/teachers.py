"""The distributions that the policy's are compared with over the whole vocabulary."""

from typing import Any

import torch
from torch import Tensor

from srft_ray.train.batching import MicroBatch
from srft_ray.train.logprobs import ReferenceLogits


@torch.no_grad()
def known_logits(
    needs: frozenset[str], engine: Any, reference: Any, micro_batch: MicroBatch, temperature: float
) -> dict[str, ReferenceLogits]:
    """By the field of PolicyOutput that gets the KL to them; a collective under ZeRO-3."""
    found: dict[str, ReferenceLogits] = {}
    if reference and "reference_kl" in needs:
        inputs = (micro_batch.input_ids_BL, micro_batch.rows_N, micro_batch.positions_N, temperature)
        positions = micro_batch.position_ids_BL
        found["reference_kl_BT"] = reference.forward(*inputs, logits_only=True, position_ids_BL=positions)
    if "teacher_kl" in needs:
        inputs = shown_demonstrations(micro_batch)
        found["teacher_kl_BT"] = engine.forward(*inputs, temperature, logits_only=True)
    return found


def shown_demonstrations(micro_batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
    """(input_ids_BL, rows_N, positions_N) of the same responses behind a longer context.

    The context is the prompt with the first demonstration of its group as the answer, and then the prompt
    again; without a demonstration it is the prompt.
    """
    device = micro_batch.input_ids_BL.device
    if not micro_batch.sequences:
        return micro_batch.input_ids_BL, micro_batch.rows_N, micro_batch.positions_N
    mask_BT = micro_batch.batch.mask_BT.cpu()
    rows, positions, contents = [], [], []
    for row, (group, completion) in enumerate(micro_batch.sequences):
        context = list(group.prompt_ids)
        if group.demonstrations:
            context = [*context, *group.demonstrations[0].ids, *context]
        contents.append(torch.tensor([*context, *completion.ids]))
        scored = mask_BT[row].nonzero()[:, 0].tolist()
        rows += [row] * len(scored)
        positions += [len(context) + place for place in scored]
    input_ids_BL = torch.nn.utils.rnn.pad_sequence(contents, batch_first=True)
    made = (input_ids_BL, torch.tensor(rows), torch.tensor(positions))
    return tuple(tensor.to(device) for tensor in made)  # type: ignore[return-value]
