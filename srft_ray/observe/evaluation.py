"""The figures of an evaluation set."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from algorithms import Group

CORRECT_ABOVE = 0.5  # rewards above it count as correct


@dataclass(frozen=True)
class Scored:
    """What evaluation keeps of a prompt.

    Attributes:
        rewards: of its rollouts.
        tokens: that they have together.
        surprise: minus the sum of the log-probs of those tokens, in nats.
    """

    rewards: list[float]
    tokens: int
    surprise: float

    @classmethod
    def of(cls, group: Group) -> "Scored":
        tokens = sum(len(rollout.ids) for rollout in group.rollouts)
        surprise = -sum(sum(rollout.logprobs or ()) for rollout in group.rollouts)
        return cls(group.rewards, tokens, surprise)


def evaluation_record(name: str, step: int, prompts: Sequence[Scored]) -> dict[str, Any]:
    """The line of evaluations.jsonl of a set after `step` optimizer steps.

    avg@k and pass@k are in percent, each with the half-width of a 95 % interval over prompts. The entropy is
    minus the mean log-prob of the sampled tokens, in nats: an estimate at the evaluation's temperature.
    """
    rewards = [prompt.rewards for prompt in prompts]
    tokens = sum(prompt.tokens for prompt in prompts)
    averages = [100.0 * sum(of_prompt) / len(of_prompt) for of_prompt in rewards]
    passes = [100.0 * any(reward > CORRECT_ABOVE for reward in of_prompt) for of_prompt in rewards]
    return {
        "step": step,
        "set": name,
        "prompts": len(rewards),
        "samples": max(len(of_prompt) for of_prompt in rewards),
        "avg": _mean(averages),
        "avg_interval": _half_width(averages),
        "pass": _mean(passes),
        "pass_interval": _half_width(passes),
        "length": tokens / sum(len(of_prompt) for of_prompt in rewards),
        "entropy": sum(prompt.surprise for prompt in prompts) / max(1, tokens),
    }


def evaluation_figures(record: Mapping[str, Any]) -> dict[str, float]:
    """What loggers get of a line of evaluations.jsonl."""
    name = record["set"]
    return {
        f"eval/{name}/avg@{record['samples']}": record["avg"],
        f"eval/{name}/entropy": record["entropy"],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _half_width(values: Sequence[float]) -> float:
    """1.96 standard errors of the mean. Samples of one prompt depend on each other: prompts are the units."""
    if len(values) < 2:
        return float("nan")
    mean = _mean(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return 1.96 * math.sqrt(variance / len(values))
