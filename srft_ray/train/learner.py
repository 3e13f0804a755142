"""One optimizer step, exact: the same update whatever the micro-batches, ranks or ZeRO stage."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor

from algorithms import Algorithm, Group, PolicyOutput, Stage, selections
from srft_ray.config.schedule import learning_rate, updates_per_step
from srft_ray.config.training import LearnerSection
from srft_ray.train.batching import MicroBatch, collate, pack
from srft_ray.train.deepspeed_engine import DeepSpeedEngine, ReferenceModel

Totals = defaultdict[str, Tensor]


class ParityError(RuntimeError):
    """The learner's log-probs of fresh rollouts differ from the engine's: the engines hold other weights."""


class Learner:
    """Turns the groups of a step into one or several updates of the policy. Every rank calls `step` with its own groups."""

    def __init__(
        self,
        engine: DeepSpeedEngine,
        config: LearnerSection,
        parity_threshold: float,
        reference: ReferenceModel | None = None,
    ) -> None:
        self.engine, self.config, self.parity_threshold, self.reference = (
            engine,
            config,
            parity_threshold,
            reference,
        )

    def step(
        self, groups: Sequence[Group], step: int, stage: Stage, temperature: float
    ) -> dict[str, float | None]:
        """Updates the policy and returns the step's metrics, equal on all ranks.

        With n mini-batches the groups whose id is i modulo n make update i, wherever they are.

        Raises:
            ParityError: before any update, if fresh rollouts do not come from this policy.
        """
        if step == stage.start > 0:
            self.engine.reset_optimizer()
        number, algorithm = updates_per_step(self.config, stage), stage.algorithm
        mini_batches = [
            self._cut([g for g in groups if g.group_id % number == i], step, stage.start)
            for i in range(number)
        ]
        parity, mean_entropy, lr = None, None, learning_rate(self.config, stage, step)
        if number > 1 or "mean_entropy" in algorithm.needs:
            parity, mean_entropy = self._look(list(chain(*mini_batches)), step, temperature, keep=number > 1)
        updates = []
        for micro_batches in mini_batches:
            counts = self._global_counts(algorithm, micro_batches)
            totals, parity_max = self._accumulate(algorithm, micro_batches, counts, temperature, mean_entropy)
            sums = _all_reduce(totals)
            parity = parity or self._check_parity(sums, parity_max, step)
            updates.append(
                {
                    **_summary(algorithm, sums, counts),
                    "grad_norm": self.engine.step(lr),
                    "micro_batches": float(len(micro_batches)),
                }
            )
        return {**_merge(updates), **parity, "lr": lr}

    def _cut(self, groups: Sequence[Group], step: int, start: int) -> list[MicroBatch]:
        """Micro-batches on this rank's device. ZeRO's collectives need the same number on every rank: pads with empty ones."""
        micro_batches = pack(groups, self.config.micro_batch_tokens, step, start)
        most = torch.tensor(max(1, len(micro_batches)), device=self.engine.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        micro_batches += [collate([], step, start) for _ in range(int(most) - len(micro_batches))]
        return [micro_batch.to(self.engine.device) for micro_batch in micro_batches]

    @torch.no_grad()
    def _look(
        self, micro_batches: Sequence[MicroBatch], step: int, temperature: float, keep: bool
    ) -> tuple[dict[str, float | None], Tensor]:
        """A pass before the first update: (parity, mean entropy of all rollout tokens); `keep`s its log-probs as those of π_old."""
        totals, parity_max = self._totals()
        for micro_batch in micro_batches:
            policy = self._forward(micro_batch, temperature, frozenset())
            parity_max = torch.maximum(parity_max, _observe(micro_batch, policy, totals))
            micro_batch.old_BT = policy.logprobs_BT if keep else None
        sums = _all_reduce(totals)
        return self._check_parity(sums, parity_max, step), sums["entropy/rollout"] / sums[
            "tokens/rollout"
        ].clamp(min=1)

    def _accumulate(
        self,
        algorithm: Algorithm,
        micro_batches: Sequence[MicroBatch],
        counts: Mapping[str, Tensor],
        temperature: float,
        mean_entropy: Tensor | None,
    ) -> tuple[Totals, Tensor]:
        """Adds the gradients of all micro-batches of one update; returns this rank's sums and its largest log-prob difference."""
        totals, parity_max = self._totals()
        needs = algorithm.needs
        for index, micro_batch in enumerate(micro_batches):
            policy = self._forward(micro_batch, temperature, needs, mean_entropy)
            loss = self._loss(algorithm, micro_batch, policy, counts, totals)
            parity_max = torch.maximum(parity_max, _observe(micro_batch, policy, totals))
            self.engine.backward(loss, last=index == len(micro_batches) - 1)
        return totals, parity_max

    def _totals(self) -> tuple[Totals, Tensor]:
        return defaultdict(
            lambda: torch.zeros((), dtype=torch.float64, device=self.engine.device)
        ), torch.zeros((), device=self.engine.device)

    def _global_counts(self, algorithm: Algorithm, micro_batches: Sequence[MicroBatch]) -> dict[str, Tensor]:
        local = [algorithm.counts(m.batch) for m in micro_batches]
        return _all_reduce({name: torch.stack([c[name] for c in local]).sum() for name in local[0]})

    def _forward(
        self,
        micro_batch: MicroBatch,
        temperature: float,
        needs: frozenset[str],
        mean_entropy: Tensor | None = None,
    ) -> PolicyOutput:
        inputs = (micro_batch.input_ids_BL, micro_batch.rows_N, micro_batch.positions_N, temperature)
        logprobs_N, entropies_N = self.engine.forward(*inputs, "entropy_gradient" in needs)
        reference_BT = (
            micro_batch.align(self.reference.logprobs(*inputs))
            if self.reference and "reference" in needs
            else None
        )
        return PolicyOutput(
            micro_batch.align(logprobs_N),
            micro_batch.align(entropies_N),
            micro_batch.old_BT,
            reference_BT,
            mean_entropy,
        )

    def _loss(
        self,
        algorithm: Algorithm,
        micro_batch: MicroBatch,
        policy: PolicyOutput,
        counts: Mapping[str, Tensor],
        totals: Totals,
    ) -> Tensor:
        loss = torch.zeros((), device=self.engine.device)
        for term in algorithm.terms():
            total, weight = term.total(micro_batch.batch, policy)
            share = total / term.denominator(counts[term.name]).to(total.dtype)
            loss = loss + share
            totals[f"loss/{term.name}"] += share.detach()
            totals[f"weight/{term.name}"] += weight
            selected_BT = term.select(micro_batch.batch)
            totals[f"selected/{term.name}"] += selected_BT.sum()
            for name, figure in (term.watch or {}).items():
                totals[f"watch/{name}/{term.name}"] += (
                    figure(micro_batch.batch, policy).detach() * selected_BT
                ).sum()
        return loss

    def _check_parity(
        self, sums: Mapping[str, Tensor], parity_max: Tensor, step: int
    ) -> dict[str, float | None]:
        dist.all_reduce(parity_max, dist.ReduceOp.MAX)
        tokens = float(sums["parity/tokens"])
        if not tokens:  # nothing was compared, which is no agreement
            return {
                "parity/abs_logprob_diff": None,
                "parity/abs_logprob_diff_max": None,
                "parity/tokens": 0.0,
            }
        mean = float(sums["parity/sum"]) / tokens
        if not mean <= self.parity_threshold:
            raise ParityError(
                f"Step {step}: log-probs of rollouts that the engines say come from policy version {step} differ from the learner's by "
                f"{mean:.2e} on average (threshold {self.parity_threshold:.0e}). The engines hold other weights: the publication of "
                f"version {step} did not reach them, or their model differs. No update was applied."
            )
        return {
            "parity/abs_logprob_diff": mean,
            "parity/abs_logprob_diff_max": float(parity_max),
            "parity/tokens": tokens,
        }


def _observe(micro_batch: MicroBatch, policy: PolicyOutput, totals: Totals) -> Tensor:
    """Adds entropies, ratios to π_old and parity of one micro-batch; returns its largest log-prob difference."""
    batch, logprobs_BT, entropies_BT = (
        micro_batch.batch,
        policy.logprobs_BT.detach(),
        policy.entropies_BT.detach(),
    )
    masks = {
        "demo": batch.mask_BT & batch.is_demo_B[:, None],
        "rollout": batch.mask_BT & ~batch.is_demo_B[:, None],
    }
    for origin, mask_BT in masks.items():
        totals[f"entropy/{origin}"] += (entropies_BT * mask_BT).sum()
        totals[f"tokens/{origin}"] += mask_BT.sum()
    if policy.old_logprobs_BT is not None:
        sampled_BT = selections.sampled(batch)
        log_ratio_BT = (logprobs_BT - policy.old_logprobs_BT) * sampled_BT
        totals["ratio/mean"] += (log_ratio_BT.exp() * sampled_BT).sum()
        totals["ratio/kl_old"] += ((log_ratio_BT.exp() - 1 - log_ratio_BT) * sampled_BT).sum()
        totals["tokens/sampled"] += sampled_BT.sum()
    gap_BT = (logprobs_BT - batch.behavior_logprobs_BT).abs() * micro_batch.fresh_BT
    totals["parity/sum"] += gap_BT.sum()
    totals["parity/tokens"] += micro_batch.fresh_BT.sum()
    return gap_BT.max().to(torch.float32)


def _summary(
    algorithm: Algorithm, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]
) -> dict[str, float]:
    """Metrics of one update. ratio/kl_old estimates KL(π_old‖π) by r - 1 - log r."""
    metrics = {}
    for term in algorithm.terms():
        selected = sums[f"selected/{term.name}"].clamp(min=1)
        metrics[f"loss/{term.name}"], metrics[f"count/{term.name}"] = (
            float(sums[f"loss/{term.name}"]),
            float(counts[term.name]),
        )
        metrics[f"weight/{term.name}"] = float(sums[f"weight/{term.name}"] / selected)
        metrics |= {
            f"{name}/{term.name}": float(sums[f"watch/{name}/{term.name}"] / selected)
            for name in term.watch or ()
        }
    loss = sum(value for key, value in metrics.items() if key.startswith("loss/"))
    for origin in ("rollout", "demo"):
        metrics[f"entropy/{origin}"] = float(
            sums[f"entropy/{origin}"] / sums[f"tokens/{origin}"].clamp(min=1)
        )
    metrics |= {
        key: float(sums[key] / sums["tokens/sampled"].clamp(min=1))
        for key in ("ratio/mean", "ratio/kl_old")
        if key in sums
    }
    return {"loss": loss, **metrics, "tokens": float(sums["tokens/rollout"] + sums["tokens/demo"])}


def _merge(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of a step with several updates: counts and tokens add up, everything else is their mean."""

    def total(key: str) -> bool:
        return key in ("tokens", "micro_batches") or key.startswith("count/")

    return {key: sum(u[key] for u in updates) / (1 if total(key) else len(updates)) for key in updates[0]}


def _all_reduce(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = sorted(values)
    stacked = torch.stack([values[name].double() for name in names])
    dist.all_reduce(stacked)
    return dict(zip(names, stacked, strict=True))
