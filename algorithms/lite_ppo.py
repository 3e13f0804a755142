"""Lite PPO: the baseline of the group, and the standard deviation of the step."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from algorithms.credit import among_rollouts
from algorithms.reinforce_pp import BatchNormalized
from algorithms.types import Group, SequenceRecord


@dataclass(frozen=True)
class LitePPO(BatchNormalized):
    """Lite PPO: GRPO with Â = (R - mean of the group) / std of all rewards of the step, and a token mean

    Easy and hard prompts are not weighted up by the small std of their groups. The clip is not stated in
    what was available: 0.2 on both sides is a choice. The std divides by n - 1.
    """

    name: ClassVar[str] = "lite_ppo"
    paper: ClassVar[str] = "arXiv 2508.08221"

    def advantages(self, group: Group) -> list[float]:
        return among_rollouts(group, lambda rewards: [r - statistics.fmean(rewards) for r in rewards])

    def center_and_scale(self, rollouts: Sequence[SequenceRecord]) -> tuple[float, float]:
        rewards = [record.reward for record in rollouts]
        return 0.0, statistics.stdev(rewards) if len(rewards) > 1 else 0.0
