"""Credit rules: from the rewards of a group to advantages."""

import math
import statistics
from collections.abc import Callable, Sequence

from algorithms.types import Completion, Group

EPSILON = 1e-6


def reward_of(completion: Completion) -> float:
    return completion.reward


def group_advantages(rewards: Sequence[float], standardize: bool = True, ddof: int = 1) -> list[float]:
    """(R - mean) / (std + 1e-6) (SRFT, Eq. 2 and 7); zeros for a group of one.

    With `standardize=False` it is R - mean (Dr.GRPO). The standard deviation divides by n - ddof. In LUFFY's
    and verl's code the advantage of a group of one is R.
    """
    if len(rewards) < 2:
        return [0.0] * len(rewards)
    mean = statistics.fmean(rewards)
    deviation = statistics.stdev(rewards) if ddof else statistics.pstdev(rewards)
    scale = deviation + EPSILON if standardize else 1.0
    return [(reward - mean) / scale for reward in rewards]


def soft_advantages(rewards: Sequence[float], temperature: float) -> list[float]:
    """R - V with the soft value V = β · log mean exp(R/β), β = `temperature`."""
    highest = max(rewards, default=0.0)
    shares = [math.exp((reward - highest) / temperature) for reward in rewards]
    return [reward - highest - temperature * math.log(statistics.fmean(shares)) for reward in rewards]


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """R_i minus the mean of the other rewards (RLOO, arXiv 2402.14740); zeros for a group of one."""
    others = len(rewards) - 1
    if others < 1:
        return [0.0] * len(rewards)
    return [reward - (sum(rewards) - reward) / others for reward in rewards]


def among_rollouts(
    group: Group,
    rule: Callable[[list[float]], list[float]],
    reward: Callable[[Completion], float] = reward_of,
) -> list[float]:
    """The rule applied to the rewards of the group's rollouts alone; 0 for demonstrations.

    One advantage per completion, in the order of the group's completions.
    """
    advantages = iter(rule([reward(completion) for completion in group.rollouts]))
    return [next(advantages) if c.origin == "rollout" else 0.0 for c in group.completions]


def repetition(ids: Sequence[int], length: int) -> float:
    """Share of the sequences of `length` tokens in a response that stand in it before, 0 to 1."""
    count = len(ids) - length + 1
    if count < 1:
        return 0.0
    distinct = {tuple(ids[start : start + length]) for start in range(count)}
    return 1 - len(distinct) / count


def most_varied(rewards: Sequence[float], count: int) -> set[int]:
    """Numbers of the `count` rewards with the largest variance (PODS, arXiv 2504.13818).

    They are some of the highest and some of the lowest; of several choices, the one with more high rewards.
    """
    order = sorted(range(len(rewards)), key=lambda number: rewards[number])
    choices = []
    for high in range(count + 1):
        chosen = order[: count - high] + order[len(order) - high :]
        choices.append((statistics.pvariance([rewards[number] for number in chosen]), high, chosen))
    return set(max(choices)[2])


def overlong_penalty(length: int, max_length: int, buffer: int, factor: float = 1.0) -> float:
    """0 up to max_length - buffer tokens, then linear to -factor at max_length, and -factor beyond it.

    Source: DAPO, arXiv 2503.14476, Eq. 13. `buffer` is a number of tokens, at least 1.
    """
    allowed = max_length - buffer
    share = min(max((length - allowed) / buffer, 0.0), 1.0)
    return -share * factor
