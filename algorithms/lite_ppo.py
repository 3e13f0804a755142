"""Lite PPO: the baseline of the group, and the standard deviation of the step."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from algorithms.credit import group_advantages
from algorithms.reinforce_pp import BatchNormalized
from algorithms.types import SequenceRecord


@dataclass(frozen=True)
class LitePPO(BatchNormalized):
    """Lite PPO: GRPO with Â = (R - mean of the group) / std of all rewards of the step, and a token mean

    Easy and hard prompts are not weighted up by the small std of their groups. The clip is not stated in
    what was available: 0.2 on both sides is a choice. The std divides by n - 1.
    """

    name: ClassVar[str] = "lite_ppo"
    paper: ClassVar[str] = "arXiv 2508.08221"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repetition_penalty:
            raise ValueError("lite_ppo has the std of plain rewards: leave repetition_penalty at 0")

    def credit_rule(self, rewards: list[float]) -> list[float]:
        return group_advantages(rewards, standardize=False)

    def center_and_scale(self, rollouts: Sequence[SequenceRecord]) -> tuple[float, float]:
        rewards = [self.reward_scale * record.reward for record in rollouts]
        return 0.0, statistics.stdev(rewards) if len(rewards) > 1 else 0.0
