"""One algorithm after another in one run, such as SFT and then RL."""

from dataclasses import dataclass, field
from typing import ClassVar

from algorithms.base import Algorithm, Stage
from algorithms.grpo import GRPO
from algorithms.settings import AS_THE_RUN, Schedule, limited
from algorithms.sft import SFT
from algorithms.term import Term


@dataclass(frozen=True)
class TwoStage(Algorithm):
    """Two stages: `first` for `first_steps` steps (None: half of all steps), then `second`

    Each stage is like a run of its own that starts from the current weights: its optimizer state is fresh,
    and it has the learning rate, schedule, weight decay, prompts per step and mini-batches that
    `first_schedule` or `second_schedule` give. What these leave out is the run's, warm-up steps included.
    What an algorithm schedules by steps counts from the first step of its stage. If the second stage uses a
    reference model, learner.reference must be set, and if only the second uses a critic, learner.critic. The
    second stage continues in the seeded order of prompts where the first ended, as a run with
    trainer.first_group does.
    """

    name: ClassVar[str] = "two_stage"
    paper: ClassVar[str] = "general; arXiv 2604.23747 is one case"
    first: Algorithm = field(default_factory=SFT)
    second: Algorithm = field(default_factory=GRPO)
    first_steps: int | None = limited(None, least=0)
    first_schedule: Schedule = AS_THE_RUN
    second_schedule: Schedule = AS_THE_RUN

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(isinstance(stage, TwoStage) for stage in (self.first, self.second)):
            raise ValueError("a stage cannot have stages itself")
        if self.first.buffer_size or self.second.buffer_size:
            raise ValueError("a stage cannot have a buffer of groups")

    @property
    def uses_rollouts(self) -> bool:  # type: ignore[override]
        return self.first.uses_rollouts or self.second.uses_rollouts

    @property
    def uses_demonstrations(self) -> bool:  # type: ignore[override]
        return self.first.uses_demonstrations or self.second.uses_demonstrations

    @property
    def uses_history(self) -> bool:  # type: ignore[override]
        return self.first.uses_history or self.second.uses_history

    @property
    def uses_critic(self) -> bool:  # type: ignore[override]
        return self.first.uses_critic or self.second.uses_critic

    @property
    def replay_age(self) -> int:  # type: ignore[override]
        return max(self.first.replay_age, self.second.replay_age)

    @property
    def needs(self) -> frozenset[str]:
        return self.first.needs | self.second.needs

    def stage(self, step: int, total_steps: int) -> Stage:
        switch = total_steps // 2 if self.first_steps is None else self.first_steps
        if switch >= total_steps:
            left = f"first_steps={switch} leaves nothing of {total_steps} steps"
            raise ValueError(f"{left} for the second stage")
        if step < switch:
            return Stage(self.first, 0, switch, self.first_schedule)
        return Stage(self.second, switch, total_steps - switch, self.second_schedule)

    def terms(self) -> tuple[Term, ...]:
        raise TypeError("two_stage has no terms of its own: ask stage(step, total_steps).algorithm")
