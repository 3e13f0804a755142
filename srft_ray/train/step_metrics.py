"""What a step measures: sums over the tokens of all ranks, and the metrics that are made of them.

Sums are float64 scalars on the learner's device, by name: `loss/<term>`, `weight/<term>`, `selected/<term>`,
`metrics/<figure>/<term>`, `entropy/<origin>` (rollout or demo), `tokens/<origin>` (or replay),
`surprise/demo` (minus the log-probs), `ratio/…`, `tokens/sampled`, `parity/…`, and `nonfinite` (micro-batches
with a number that is not finite). They stay on the device until the step's one reduction, so that nothing
waits for it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from algorithms import Algorithm, PolicyOutput, selections
from srft_ray.train.batching import MicroBatch
from srft_ray.train.nonfinite import all_finite

ADDED_UP = ("tokens", "micro_batches")  # metrics of an update that add up over the updates of a step


class Sums(defaultdict[str, Tensor]):
    """This rank's sums, and its largest difference between the learner's and the engine's log-probs."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(lambda: torch.zeros((), dtype=torch.float64, device=device))
        self.parity_max = torch.zeros((), device=device)

    def observe(self, micro_batch: MicroBatch, policy: PolicyOutput, loss: Tensor | None = None) -> Tensor:
        """Adds entropies, ratios to π_old, and differences from the engine's log-probs.

        Returns:
            Whether the loss and what it is made of are finite, a bool scalar on the device.
        """
        is_finite = all_finite(micro_batch, policy)
        if loss is not None:
            is_finite = is_finite & loss.detach().isfinite()
        self["nonfinite"] += ~is_finite
        self._add_entropies(micro_batch, policy)
        if policy.old_logprobs_BT is not None:
            self._add_ratios(micro_batch, policy.logprobs_BT.detach(), policy.old_logprobs_BT)
        self._add_parity(micro_batch, policy.logprobs_BT.detach())
        return is_finite

    def _add_entropies(self, micro_batch: MicroBatch, policy: PolicyOutput) -> None:
        batch = micro_batch.batch
        entropies_BT = policy.entropies_BT.detach()
        masks = {"demo": selections.demonstrations(batch), "rollout": selections.rollouts(batch)}
        for origin, mask_BT in masks.items():
            self[f"entropy/{origin}"] += (entropies_BT * mask_BT).sum()
            self[f"tokens/{origin}"] += mask_BT.sum()
        self["surprise/demo"] -= (policy.logprobs_BT.detach() * masks["demo"]).sum()
        self["tokens/replay"] += selections.replays(batch).sum()

    def _add_ratios(self, micro_batch: MicroBatch, logprobs_BT: Tensor, old_BT: Tensor) -> None:
        """KL(π_old‖π) is estimated by r - 1 - log r, with the ratio r = π / π_old of sampled tokens."""
        sampled_BT = selections.sampled(micro_batch.batch)
        log_ratio_BT = (logprobs_BT - old_BT) * sampled_BT
        ratio_BT = log_ratio_BT.exp()
        self["ratio/mean"] += (ratio_BT * sampled_BT).sum()
        self["ratio/kl_old"] += ((ratio_BT - 1 - log_ratio_BT) * sampled_BT).sum()
        self["tokens/sampled"] += sampled_BT.sum()

    def _add_parity(self, micro_batch: MicroBatch, logprobs_BT: Tensor) -> None:
        difference_BT = logprobs_BT - micro_batch.batch.behavior_logprobs_BT
        gap_BT = difference_BT.abs() * micro_batch.fresh_BT
        self["parity/sum"] += gap_BT.sum()
        self["parity/tokens"] += micro_batch.fresh_BT.sum()
        self.parity_max = torch.maximum(self.parity_max, gap_BT.max().to(torch.float32))


def all_reduce(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values summed over all ranks, which have the same names: float64 scalars, in one collective."""
    names = sorted(values)
    stacked = torch.stack([values[name].double() for name in names])
    dist.all_reduce(stacked)
    return dict(zip(names, stacked, strict=True))


def mean_rollout_entropy(sums: Mapping[str, Tensor]) -> Tensor:
    """In nats per token, over all rollout tokens of the step; a scalar."""
    return sums["entropy/rollout"] / sums["tokens/rollout"].clamp(min=1)


def update_metrics(
    algorithm: Algorithm, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]
) -> dict[str, float]:
    """Metrics of one update from the sums and counts of all ranks."""
    metrics: dict[str, float] = {"loss": 0.0}
    for term in algorithm.terms():
        selected = sums[f"selected/{term.name}"].clamp(min=1)
        loss = float(sums[f"loss/{term.name}"])
        metrics["loss"] += loss
        metrics[f"loss/{term.name}"] = loss
        metrics[f"count/{term.name}"] = float(counts[term.name])
        metrics[f"weight/{term.name}"] = float(sums[f"weight/{term.name}"] / selected)
        for name in term.metrics:
            metrics[f"{name}/{term.name}"] = float(sums[f"metrics/{name}/{term.name}"] / selected)
    for origin in ("rollout", "demo"):
        tokens = sums[f"tokens/{origin}"].clamp(min=1)
        metrics[f"entropy/{origin}"] = float(sums[f"entropy/{origin}"] / tokens)
    for key in ("ratio/mean", "ratio/kl_old"):
        if key in sums:
            metrics[key] = float(sums[key] / sums["tokens/sampled"].clamp(min=1))
    metrics["tokens"] = sum(float(sums[f"tokens/{origin}"]) for origin in ("rollout", "demo", "replay"))
    return metrics


def step_metrics(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of a step with several updates: counts and tokens add up, everything else is averaged."""
    metrics = {}
    for key in updates[0]:
        total = sum(update[key] for update in updates)
        adds_up = key in ADDED_UP or key.startswith("count/")
        metrics[key] = total if adds_up else total / len(updates)
    return metrics
