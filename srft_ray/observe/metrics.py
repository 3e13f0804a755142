"""What a step leaves behind: its metrics, and the ledger with every sequence that entered the update."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from algorithms import Group

LEDGER = pa.schema(
    [
        ("step", pa.int64()),
        ("group_id", pa.int64()),
        ("sample", pa.int32()),
        ("origin", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("reward", pa.float64()),
        ("verdict", pa.string()),
        ("answer", pa.string()),
        ("reference", pa.string()),
        ("advantage", pa.float64()),
        ("policy_version", pa.int64()),
        ("seed", pa.int64()),
        ("finish_reason", pa.string()),
        ("prefix", pa.int32()),
        ("attempt", pa.int32()),
    ]
)


def ledger_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    return [
        {
            "step": g.step,
            "group_id": g.group_id,
            "sample": c.sample,
            "origin": c.origin,
            "prompt": g.prompt,
            "response": c.text,
            "prompt_ids": g.prompt_ids,
            "response_ids": c.ids,
            "logprobs": c.logprobs and [None] * c.prefix + list(c.logprobs[c.prefix :]),
            "reward": c.reward,
            "verdict": c.verdict,
            "answer": c.answer,
            "reference": g.reference,
            "advantage": c.advantage,
            "policy_version": c.policy_version,
            "seed": c.seed,
            "finish_reason": c.finish_reason,
            "prefix": c.prefix,
            "attempt": g.attempt,
        }
        for g in groups
        for c in g.trained
    ]


def write_ledger(run_dir: Path, step: int, rank: int, groups: Sequence[Group]) -> None:
    """One file per step and rank, complete or absent."""
    target = run_dir / "groups" / f"step-{step:06d}-{rank:04d}.parquet"
    part = target.with_suffix(".part")
    pq.write_table(pa.Table.from_pylist(ledger_rows(groups), LEDGER), part)
    part.replace(target)


def group_metrics(groups: Sequence[Group], step: int, device: torch.device) -> dict[str, float]:
    """Rewards, lengths, staleness and generation time over the groups of all ranks; a collective."""
    rollouts = [completion for group in groups for completion in group.rollouts]
    mixed = [[c.reward for c in group.rollouts] for group in groups if group.rollouts]
    sums = torch.tensor(
        [
            len(rollouts),
            sum(c.reward for c in rollouts),
            sum(len(c.ids) for c in rollouts),
            sum(c.prefix for c in rollouts),
            sum(g.attempt for g in groups),
            sum(g.discarded_tokens for g in groups),
            sum(c.finish_reason == "length" for c in rollouts),
            sum(step - c.policy_version for c in rollouts),
            sum(min(rewards) == max(rewards) and max(rewards) > 0.5 for rewards in mixed),
            sum(min(rewards) == max(rewards) and max(rewards) <= 0.5 for rewards in mixed),
            sum(c.verdict in ("timeout", "error") for c in rollouts),
        ],
        dtype=torch.float64,
        device=device,
    )
    times = torch.tensor(
        [
            max((g.finished_at for g in groups), default=0.0),
            max((-g.started_at for g in groups), default=-math.inf),
        ],
        dtype=torch.float64,
        device=device,
    )
    dist.all_reduce(sums)
    dist.all_reduce(times, dist.ReduceOp.MAX)
    (
        count,
        reward,
        length,
        prefix,
        discarded,
        discarded_tokens,
        truncated,
        staleness,
        all_correct,
        all_wrong,
        unjudged,
    ) = sums.tolist()
    most = max(count, 1.0)
    return {
        "reward/mean": reward / most,
        "length/mean": length / most,
        "length/truncated": truncated / most,
        "staleness/mean": staleness / most,
        "groups/all_correct": all_correct,
        "groups/all_wrong": all_wrong,
        "groups/discarded": discarded,
        "verdict/timeout_or_error": unjudged,
        "time/generation": float(times.sum()) if count else 0.0,
        "tokens/generated": length - prefix + discarded_tokens,
    }


def utilization(record: dict[str, float]) -> dict[str, float]:
    """What learners and engines did with a step, from its record: shares of `time/step` in 0..1, and trained tokens per second.

    The engines' share is the span from the first start to the last end of generation for the step's groups. With
    max_staleness > 0 that span reaches into earlier steps and the share is cut at 1: the step itself did not wait for it.
    """
    seconds = record["time/step"]
    return {
        "utilization/learner": min(1.0, record["time/learner"] / seconds),
        "utilization/engine": min(1.0, record["time/generation"] / seconds),
        "tokens/per_second": record["tokens"] / seconds,
    }


@dataclass(frozen=True)
class Scored:
    """What evaluation keeps of a prompt: the rewards of its rollouts, how many tokens they have, and minus the sum of their log-probs."""

    rewards: list[float]
    tokens: int
    surprise: float

    @classmethod
    def of(cls, group: Group) -> "Scored":
        return cls(
            group.rewards,
            sum(len(c.ids) for c in group.rollouts),
            -sum(sum(c.logprobs or ()) for c in group.rollouts),
        )


def evaluation_record(name: str, step: int, prompts: Sequence[Scored]) -> dict[str, Any]:
    """avg@k and pass@k in percent with the half-width of a 95 % interval over prompts; mean length, and entropy in nats per
    token: minus the mean log-prob of sampled tokens estimates it at the evaluation's temperature."""
    rewards, tokens = [prompt.rewards for prompt in prompts], sum(prompt.tokens for prompt in prompts)
    k = max(len(r) for r in rewards)
    averages = [100.0 * sum(r) / len(r) for r in rewards]
    passes = [100.0 * any(x > 0.5 for x in r) for r in rewards]
    return {
        "step": step,
        "set": name,
        "prompts": len(rewards),
        "samples": k,
        "avg": _mean(averages),
        "avg_interval": _half_width(averages),
        "pass": _mean(passes),
        "pass_interval": _half_width(passes),
        "length": tokens / sum(map(len, rewards)),
        "entropy": sum(prompt.surprise for prompt in prompts) / max(1, tokens),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _half_width(values: Sequence[float]) -> float:
    """1.96 standard errors of the mean; prompts are the sampling unit, since samples of one prompt are not independent."""
    if len(values) < 2:
        return float("nan")
    mean = _mean(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return 1.96 * math.sqrt(variance / len(values))
