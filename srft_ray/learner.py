"""One exact optimizer step: the same update whatever the micro-batches, ranks or ZeRO stage."""
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from algorithms import Algorithm, Group, PolicyOutput, Stage
from srft_ray.batching import MicroBatch, collate, pack
from srft_ray.config import LearnerSection
from srft_ray.engine_deepspeed import DeepSpeedEngine


class ParityError(RuntimeError):
    """The learner's log-probs of fresh rollouts differ from the engine's: the engines hold other weights."""


class Learner:
    """Turns the groups of a step into one update of the policy. Every rank calls `step` with its own groups."""

    def __init__(self, engine: DeepSpeedEngine, config: LearnerSection, parity_threshold: float) -> None:
        self.engine, self.config, self.parity_threshold = engine, config, parity_threshold

    def step(self, groups: Sequence[Group], step: int, stage: Stage, temperature: float) -> dict[str, float]:
        """Updates the policy and returns the step's metrics, equal on all ranks.

        Raises:
            ParityError: before the update, if fresh rollouts do not come from this policy.
        """
        micro_batches = [m.to(self.engine.device) for m in self._equal_number(pack(groups, self.config.micro_batch_tokens, step), step)]
        counts = self._global_counts(stage.algorithm, micro_batches)
        totals: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=self.engine.device))
        parity_max = torch.zeros((), device=self.engine.device)
        for index, micro_batch in enumerate(micro_batches):
            policy = self._forward(micro_batch, temperature)
            loss = self._loss(stage.algorithm, micro_batch, policy, counts, totals)
            parity_max = torch.maximum(parity_max, _observe(micro_batch, policy, totals))
            self.engine.backward(loss, last=index == len(micro_batches) - 1)
        sums = _all_reduce(totals)
        parity = self._check_parity(sums, parity_max, step)
        lr = learning_rate(self.config, stage, step)
        grad_norm = self.engine.step(lr)
        return {**_summary(stage.algorithm, sums, counts), **parity, "grad_norm": grad_norm, "lr": lr,
                "micro_batches": float(len(micro_batches))}

    def _equal_number(self, micro_batches: list[MicroBatch], step: int) -> list[MicroBatch]:
        """ZeRO's collectives need the same number of micro-batches on every rank: pads with empty ones."""
        most = torch.tensor(max(1, len(micro_batches)), device=self.engine.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return micro_batches + [collate([], step) for _ in range(int(most) - len(micro_batches))]

    def _global_counts(self, algorithm: Algorithm, micro_batches: Sequence[MicroBatch]) -> dict[str, Tensor]:
        local = [algorithm.counts(m.batch) for m in micro_batches]
        return _all_reduce({name: torch.stack([c[name] for c in local]).sum() for name in local[0]})

    def _forward(self, micro_batch: MicroBatch, temperature: float) -> PolicyOutput:
        logprobs_N, entropies_N = self.engine.forward(
            micro_batch.input_ids_BL, micro_batch.rows_N, micro_batch.positions_N, temperature)
        return PolicyOutput(micro_batch.align(logprobs_N), micro_batch.align(entropies_N))

    def _loss(self, algorithm: Algorithm, micro_batch: MicroBatch, policy: PolicyOutput, counts: Mapping[str, Tensor],
              totals: dict[str, Tensor]) -> Tensor:
        loss = torch.zeros((), device=self.engine.device)
        for term in algorithm.terms():
            total, weight = term.total(micro_batch.batch, policy)
            loss = loss + total / counts[term.name].clamp(min=1).to(total.dtype)
            totals[f"loss/{term.name}"] += total.detach()
            totals[f"weight/{term.name}"] += weight
            totals[f"selected/{term.name}"] += term.select(micro_batch.batch).sum()
        return loss

    def _check_parity(self, sums: Mapping[str, Tensor], parity_max: Tensor, step: int) -> dict[str, float]:
        dist.all_reduce(parity_max, dist.ReduceOp.MAX)
        mean = float(sums["parity/sum"] / sums["parity/tokens"].clamp(min=1))
        if not mean <= self.parity_threshold:
            raise ParityError(
                f"Step {step}: log-probs of rollouts that the engines say come from policy version {step} differ from the learner's by "
                f"{mean:.2e} on average (threshold {self.parity_threshold:.0e}). The engines hold other weights: the publication of "
                f"version {step} did not reach them, or their model differs. No update was applied.")
        return {"parity/abs_logprob_diff": mean, "parity/abs_logprob_diff_max": float(parity_max)}


def learning_rate(config: LearnerSection, stage: Stage, step: int) -> float:
    """Rate of optimizer step `step`: linear warm-up, then constant, or down to lr · min_lr_ratio at the stage's end."""
    peak, done = stage.lr if stage.lr is not None else config.lr, step - stage.start
    if done < config.warmup_steps:
        return peak * (done + 1) / config.warmup_steps
    progress = (done - config.warmup_steps) / max(1, stage.steps - config.warmup_steps)
    shape = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}[config.lr_schedule]
    floor = config.min_lr_ratio if config.lr_schedule != "constant" else 0.0
    return peak * (floor + (1.0 - floor) * shape)


def _observe(micro_batch: MicroBatch, policy: PolicyOutput, totals: dict[str, Tensor]) -> Tensor:
    """Adds entropies and parity of one micro-batch; returns its largest log-prob difference."""
    batch, entropies_BT = micro_batch.batch, policy.entropies_BT
    for origin, mask_BT in (("demo", batch.mask_BT & batch.is_demo_B[:, None]), ("rollout", batch.mask_BT & ~batch.is_demo_B[:, None])):
        totals[f"entropy/{origin}"] += (entropies_BT * mask_BT).sum()
        totals[f"tokens/{origin}"] += mask_BT.sum()
    gap_BT = (policy.logprobs_BT.detach() - batch.behavior_logprobs_BT).abs() * micro_batch.fresh_BT
    totals["parity/sum"] += gap_BT.sum()
    totals["parity/tokens"] += micro_batch.fresh_BT.sum()
    return gap_BT.max().to(torch.float32)


def _summary(algorithm: Algorithm, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> dict[str, float]:
    metrics = {}
    for name in (term.name for term in algorithm.terms()):
        metrics[f"loss/{name}"] = float(sums[f"loss/{name}"] / counts[name].clamp(min=1))
        metrics[f"count/{name}"] = float(counts[name])
        metrics[f"weight/{name}"] = float(sums[f"weight/{name}"] / sums[f"selected/{name}"].clamp(min=1))
    loss = sum(value for key, value in metrics.items() if key.startswith("loss/"))
    for origin in ("rollout", "demo"):
        metrics[f"entropy/{origin}"] = float(sums[f"entropy/{origin}"] / sums[f"tokens/{origin}"].clamp(min=1))
    return {"loss": loss, **metrics, "tokens": float(sums["tokens/rollout"] + sums["tokens/demo"])}


def _all_reduce(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = sorted(values)
    stacked = torch.stack([values[name].double() for name in names])
    dist.all_reduce(stacked)
    return dict(zip(names, stacked, strict=True))
