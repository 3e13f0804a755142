"""Credit rules: rewards of a group -> advantages."""
import statistics
from collections.abc import Sequence

EPSILON = 1e-6


def group_advantages(rewards: Sequence[float], standardize: bool = True) -> list[float]:
    """(R - mean) / (std + 1e-6), ddof 1 (SRFT Eq. 2 and 7); zeros for a group of one. Without std: Dr.GRPO."""
    if len(rewards) < 2:
        return [0.0] * len(rewards)
    mean = statistics.fmean(rewards)
    scale = statistics.stdev(rewards) + EPSILON if standardize else 1.0
    return [(reward - mean) / scale for reward in rewards]
