"""One algorithm after another in one run, such as SFT and then GRPO (the baseline of arXiv 2604.23747)."""
from dataclasses import dataclass, field
from typing import ClassVar

from algorithms.base import Algorithm, Stage, Term
from algorithms.grpo import GRPO
from algorithms.sft import SFT
from algorithms.types import Group


@dataclass(frozen=True)
class TwoStage(Algorithm):
    """`first` for `first_steps` steps (None: half of them), then `second`. Each stage has its own learning-rate schedule.

    `first_lr` and `second_lr` default to learner.lr; arXiv 2604.23747 uses 5e-5 and 1e-6 at 7B parameters.
    """
    name: ClassVar[str] = "two_stage"
    first: Algorithm = field(default_factory=SFT)
    second: Algorithm = field(default_factory=GRPO)
    first_steps: int | None = None
    first_lr: float | None = None
    second_lr: float | None = None

    @property
    def uses_rollouts(self) -> bool:  # type: ignore[override]
        return self.first.uses_rollouts or self.second.uses_rollouts

    @property
    def uses_demonstrations(self) -> bool:  # type: ignore[override]
        return self.first.uses_demonstrations or self.second.uses_demonstrations

    def stage(self, step: int, total_steps: int) -> Stage:
        switch = min(total_steps, total_steps // 2 if self.first_steps is None else self.first_steps)
        if step < switch:
            return Stage(self.first, 0, switch, self.first_lr)
        return Stage(self.second, switch, total_steps - switch, self.second_lr)

    def terms(self) -> tuple[Term, ...]:
        raise TypeError("two_stage has no terms of its own: ask stage(step, total_steps).algorithm")

    def advantages(self, group: Group) -> list[float]:
        raise TypeError("two_stage has no credit rule of its own: ask stage(step, total_steps).algorithm")
