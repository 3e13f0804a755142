"""What an update uses of each token, kept for the ledger."""

import torch
from torch import Tensor

from algorithms import Algorithm, PolicyOutput, selections
from srft_ray.train.batching import MicroBatch


@torch.no_grad()
def record_tokens(
    algorithm: Algorithm,
    micro_batch: MicroBatch,
    policy: PolicyOutput,
) -> None:
    """Gives the completions of a micro-batch the figures of their tokens, in `measured`.

    These are the learner's log-probs and entropies, the importance ratios to the policy that sampled, and the
    weight of each term, as `Term.total` uses it. A figure that has no meaning for a token is None.
    """
    if not micro_batch.sequences:
        return
    batch = micro_batch.batch
    sampled_BT = selections.sampled(batch)
    ratios_BT = (policy.logprobs_BT - batch.behavior_logprobs_BT).exp()
    logprobs = _rows(policy.logprobs_BT, batch.mask_BT)
    entropies = _rows(policy.entropies_BT, batch.mask_BT)
    ratios = _rows(ratios_BT, sampled_BT)
    weights = {}
    for term in algorithm.terms():
        selected_BT = term.select(batch)
        weight_BT = term.weight(batch, policy.where(batch.mask_BT)).expand_as(selected_BT)
        weights[term.name] = _rows(weight_BT, selected_BT)
    for row, (_, completion) in enumerate(micro_batch.sequences):
        length = len(completion.ids)
        completion.measured = {
            "learner_logprobs": logprobs[row][:length],
            "entropies": entropies[row][:length],
            "ratios": ratios[row][:length],
            "weights": {name: values[row][:length] for name, values in weights.items()},
        }


def _rows(values_BT: Tensor, mask_BT: Tensor) -> list[list[float | None]]:
    """One list for each sequence; None outside the mask."""
    values = values_BT.detach().float().cpu().tolist()
    masks = mask_BT.cpu().tolist()
    return [
        [value if is_in else None for value, is_in in zip(*pair, strict=True)]
        for pair in zip(values, masks, strict=True)
    ]
