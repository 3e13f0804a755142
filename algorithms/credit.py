"""Credit rules: rewards of a group -> advantages."""

import statistics
from collections.abc import Callable, Sequence

from algorithms.types import Completion, Group

EPSILON = 1e-6


def group_advantages(rewards: Sequence[float], standardize: bool = True, ddof: int = 1) -> list[float]:
    """(R - mean) / (std + 1e-6) (SRFT Eq. 2 and 7); zeros for a group of one. Without std: Dr.GRPO."""
    if len(rewards) < 2:
        return [0.0] * len(rewards)
    mean = statistics.fmean(rewards)
    deviation = statistics.stdev(rewards) if ddof else statistics.pstdev(rewards)
    scale = deviation + EPSILON if standardize else 1.0
    return [(reward - mean) / scale for reward in rewards]


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """R_i minus the mean of the others (RLOO, arXiv 2402.14740); zeros for a group of one."""
    others = len(rewards) - 1
    return (
        [reward - (sum(rewards) - reward) / others for reward in rewards]
        if others > 0
        else [0.0] * len(rewards)
    )


def among_rollouts(
    group: Group,
    rule: Callable[[list[float]], list[float]],
    reward: Callable[[Completion], float] = lambda completion: completion.reward,
) -> list[float]:
    """The rule over the group's rollouts alone; 0 for demonstrations. In the order of the group's completions."""
    credit = iter(rule([reward(c) for c in group.rollouts]))
    return [next(credit) if c.origin == "rollout" else 0.0 for c in group.completions]


def overlong_penalty(length: int, max_length: int, buffer: int, factor: float = 1.0) -> float:
    """0 up to max_length - buffer tokens, then falling linearly to -factor at max_length and on (DAPO, arXiv 2503.14476, Eq. 13)."""
    return min(-(length - (max_length - buffer)) / buffer * factor, 0.0)
