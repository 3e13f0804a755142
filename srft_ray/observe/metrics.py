"""The metrics of an optimizer step that are taken from its groups and its times."""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist

from algorithms import CORRECT_ABOVE, Completion, Group
from srft_ray.observe.evaluation import UNJUDGED


def group_metrics(groups: Sequence[Group], step: int, device: torch.device) -> dict[str, float]:
    """Rewards, lengths, staleness and generation time over the groups of all ranks; a collective.

    Each key is explained in `metrics_reference`.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    local = {**_rollout_sums(rollouts, step), **_group_sums(groups)}
    sums = _reduce(local, dist.ReduceOp.SUM, device)
    span_s = _generation_span_s(groups, device)
    rollouts_or_1 = max(sums["rollouts"], 1.0)
    return {
        "reward/mean": sums["reward"] / rollouts_or_1,
        "length/mean": sums["tokens"] / rollouts_or_1,
        "length/truncated": sums["truncated"] / rollouts_or_1,
        "staleness/mean": sums["staleness"] / rollouts_or_1,
        "staleness/mixed": sums["mixed"] / rollouts_or_1,
        "groups/all_correct": sums["all_correct"],
        "groups/all_wrong": sums["all_wrong"],
        "groups/discarded": sums["discarded"],
        "groups/passed_over": sums["passed_over"],
        "verdict/timeout_or_error": sums["unjudged"],
        "time/generation": span_s if sums["rollouts"] else 0.0,
        "tokens/generated": sums["written"] - sums["prefix"] + sums["discarded_tokens"],
    }


def _rollout_sums(rollouts: Sequence[Completion], step: int) -> dict[str, float]:
    return {
        "rollouts": len(rollouts),
        "reward": sum(rollout.reward for rollout in rollouts),
        "tokens": sum(len(rollout.ids) for rollout in rollouts),
        "written": sum(rollout.written for rollout in rollouts),
        "prefix": sum(rollout.prefix for rollout in rollouts),
        "truncated": sum(rollout.finish_reason == "length" for rollout in rollouts),
        "staleness": sum(step - rollout.policy_version for rollout in rollouts),
        "mixed": sum(bool(rollout.spans) for rollout in rollouts),
        "unjudged": sum(rollout.verdict in UNJUDGED for rollout in rollouts),
    }


def _group_sums(groups: Sequence[Group]) -> dict[str, float]:
    """All correct or all wrong: the rewards of all rollouts of a group are equal."""
    rewards = [[rollout.reward for rollout in group.rollouts] for group in groups if group.rollouts]
    equal = [of_group[0] for of_group in rewards if min(of_group) == max(of_group)]
    all_correct = sum(reward > CORRECT_ABOVE for reward in equal)
    return {
        "discarded": sum(group.attempt for group in groups),
        "passed_over": sum(group.passed_over for group in groups),
        "discarded_tokens": sum(group.discarded_tokens for group in groups),
        "all_correct": all_correct,
        "all_wrong": len(equal) - all_correct,
    }


def _generation_span_s(groups: Sequence[Group], device: torch.device) -> float:
    """Seconds from the first start to the last end of generation, over all ranks."""
    ends = [group.finished_at for group in groups]
    # The earliest start is found as the maximum of the negated ones: one reduction gives both.
    negated_starts = [-group.started_at for group in groups]
    local = {
        "end": max(ends, default=0.0),
        "negated_start": max(negated_starts, default=-math.inf),
    }
    span = _reduce(local, dist.ReduceOp.MAX, device)
    return span["end"] + span["negated_start"]


def _reduce(values: dict[str, float], operation: dist.ReduceOp, device: torch.device) -> dict[str, float]:
    """The values reduced over all ranks, in float64; a collective."""
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(tensor, operation)
    return dict(zip(values, tensor.tolist(), strict=True))


def utilization(record: dict[str, float]) -> dict[str, float]:
    """Shares of `time/step` in 0 to 1 that learners and engines worked, and trained tokens per second.

    The engines' share is the span from the first start to the last end of generation for the step's groups.
    With max_staleness > 0 that span reaches into earlier steps, and the share is cut at 1: the step itself
    did not wait for it.
    """
    seconds = record["time/step"]
    return {
        "utilization/learner": min(1.0, record["time/learner"] / seconds),
        "utilization/engine": min(1.0, record["time/generation"] / seconds),
        "tokens/per_second": record["tokens"] / seconds,
    }
