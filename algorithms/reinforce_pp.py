"""REINFORCE++: advantages that are normalised over the whole step, not over the group."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from algorithms.credit import EPSILON
from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.term import Norm, Term
from algorithms.types import SequenceRecord


@dataclass(frozen=True)
class BatchNormalized(GRPO):
    """GRPO whose advantages `normalized` changes by what it sees of the step's rollouts."""

    norm: Norm = "token_mean"
    old: Old = "learner"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.standardize:
            raise ValueError(f"{self.name} is normalised over the step: leave standardize=True")

    def policy_term(self) -> Term:
        return dataclasses.replace(super().policy_term(), needs=("values",))

    def sequence_values(self, records: Sequence[SequenceRecord]) -> Mapping[str, Sequence[float]]:
        rollouts = [record for record in records if record.origin == "rollout"]
        mean, deviation = self.center_and_scale(rollouts) if rollouts else (0.0, 1.0)
        return {"advantages": [(record.advantage - mean) / (deviation + EPSILON) for record in records]}

    def center_and_scale(self, rollouts: Sequence[SequenceRecord]) -> tuple[float, float]:
        """What is subtracted from the advantages of the step, and then divides them."""
        raise NotImplementedError


@dataclass(frozen=True)
class REINFORCEPP(BatchNormalized):
    """REINFORCE++: PPO's clipped loss with Â = (R - mean) / std over all rollout tokens of the step

    `group_baseline` subtracts the mean reward of the group before (the variant of the paper for several
    rollouts per prompt). Each response counts by its length, as in OpenRLHF (from memory). Deviation: the
    paper's rewards include -β · KL of each token; here KL is a term of the loss, if `kl_coefficient` is set.
    For one rollout per prompt, or if groups with equal rewards should still teach something.
    """

    name: ClassVar[str] = "reinforce_pp"
    paper: ClassVar[str] = "arXiv 2501.03262"
    min_rollouts: ClassVar[int] = 1
    group_baseline: bool = False

    def credit_rule(self, rewards: list[float]) -> list[float]:
        baseline = statistics.fmean(rewards) if self.group_baseline and rewards else 0.0
        return [reward - baseline for reward in rewards]

    def center_and_scale(self, rollouts: Sequence[SequenceRecord]) -> tuple[float, float]:
        tokens = max(1, sum(record.length for record in rollouts))
        mean = sum(record.length * record.advantage for record in rollouts) / tokens
        variance = sum(record.length * (record.advantage - mean) ** 2 for record in rollouts) / tokens
        return mean, math.sqrt(variance)
