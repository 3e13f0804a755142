"""C3PO: every update consumes the same number of response tokens."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from algorithms import selections
from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.settings import limited
from algorithms.term import Norm, Term
from algorithms.types import SequenceRecord


@dataclass(frozen=True)
class C3PO(GRPO):
    """Constrained contextual computation: GRPO on Φ response tokens of each update, its sum divided by Φ

    Rewards and advantages are those of all rollouts. Then the rollouts of the update, in a seeded random
    order, are cut where their tokens add up to Φ = `token_budget`: the last one that fits is shortened, and
    those after it are left out. The size of an update no longer drifts with the length of responses. The
    paper has Φ = 409,600 for 512 prompts with 16 rollouts. Ambiguous there: which tokens are cut; what
    happens if fewer are sampled (here the sum is still divided by Φ); the coefficient of its entropy loss
    (here 0).
    """

    name: ClassVar[str] = "c3po"
    paper: ClassVar[str] = "arXiv 2506.14731"
    norm: Norm = "constant"
    old: Old = "learner"
    token_budget: int = limited(409_600, least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm != "constant" or self.norm_constant is not None:
            raise ValueError("c3po divides by token_budget: leave norm and norm_constant at their defaults")

    @property
    def divisor(self) -> float:
        return float(self.token_budget)

    def policy_term(self) -> Term:
        kept = selections.leading("kept")
        return dataclasses.replace(super().policy_term(), select=kept, needs=("values",))

    def sequence_values(self, records: Sequence[SequenceRecord]) -> Mapping[str, Sequence[float]]:
        kept = [0] * len(records)
        for update in {record.update for record in records}:
            numbers = [
                number
                for number, record in enumerate(records)
                if record.update == update and record.trained and record.origin == "rollout"
            ]
            self._cut(records, numbers, kept)
        return {"kept": kept}

    def _cut(self, records: Sequence[SequenceRecord], numbers: list[int], kept: list[int]) -> None:
        """Gives the rollouts of one update their tokens, until the budget is spent."""
        cut = [records[number] for number in numbers]
        random.Random(f"{[(record.group_id, record.seed) for record in cut]}").shuffle(numbers)
        left = self.token_budget
        for number in numbers:
            kept[number] = min(left, records[number].length)
            left -= kept[number]
