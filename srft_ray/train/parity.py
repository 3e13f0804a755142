"""Parity: the learner's log-probs of fresh rollouts equal those of the engine that sampled them."""

from collections.abc import Mapping

import torch.distributed as dist
from torch import Tensor

THRESHOLDS = {"float32": 1e-3, "bfloat16": 0.1}  # nats


def threshold(own: float | None, dtype: str) -> float:
    """Of the mean difference, in nats: the user's own, or the usual one of the number format."""
    return THRESHOLDS[dtype] if own is None else own


class ParityError(RuntimeError):
    """The learner's log-probs of fresh rollouts differ from the engine's: the engines hold other weights."""


def check_parity(
    sums: Mapping[str, Tensor], parity_max: Tensor, step: int, threshold: float
) -> dict[str, float | None]:
    """Metrics of parity in nats, None where no token was compared; a collective.

    Args:
        sums: over all ranks, of the differences (`parity/sum`) and of the tokens compared (`parity/tokens`).
        parity_max: this rank's largest difference.
        threshold: of the mean difference.

    Raises:
        ParityError: the mean difference is above the threshold.
    """
    dist.all_reduce(parity_max, dist.ReduceOp.MAX)
    tokens = float(sums["parity/tokens"])
    if not tokens:  # nothing was compared, which is no agreement
        return {"parity/abs_logprob_diff": None, "parity/abs_logprob_diff_max": None, "parity/tokens": 0.0}
    mean = float(sums["parity/sum"]) / tokens
    if not mean <= threshold:
        raise ParityError(
            f"Step {step}: log-probs of rollouts that the engines say come from policy version {step} differ "
            f"from the learner's by {mean:.2e} on average (threshold {threshold:.0e}). The engines hold "
            "other "
            f"weights: the publication of version {step} did not reach them, or their model differs. No "
            "update "
            "was applied."
        )
    return {
        "parity/abs_logprob_diff": mean,
        "parity/abs_logprob_diff_max": float(parity_max),
        "parity/tokens": tokens,
    }
