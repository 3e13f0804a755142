"""One algorithm after another in one run, such as SFT and then RL."""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from algorithms.base import Algorithm, Schedule, Stage, limited
from algorithms.grpo import GRPO
from algorithms.sft import SFT
from algorithms.term import Term

AS_THE_RUN = Schedule()
SFT_AT_7B = Schedule(
    lr=5e-5, lr_schedule="cosine", warmup=0.1, min_lr_ratio=0.1, groups_per_step=64, mini_batches=1
)
RL_AT_7B = Schedule(lr=1e-6, lr_schedule="constant", warmup=0.0, groups_per_step=128, mini_batches=2)


@dataclass(frozen=True)
class TwoStage(Algorithm):
    """Two stages: `first` for `first_steps` steps (None: half of them), then `second`

    Each stage is like a run of its own that starts from the weights at hand: fresh optimizer state, and where
    `first_schedule` and `second_schedule` say so its own learning rate, schedule, prompts per step and mini-batches;
    what they leave out is the run's, warm-up steps included. What an algorithm schedules by steps counts from its
    stage's beginning. A second stage with a reference model needs learner.reference. The second goes on in the seeded
    order of prompts where the first ended, as a run with trainer.first_group does.
    """

    name: ClassVar[str] = "two_stage"
    paper: ClassVar[str] = "arXiv 2604.23747"
    first: Algorithm = field(default_factory=SFT)
    second: Algorithm = field(default_factory=GRPO)
    first_steps: int | None = limited(None, least=0)
    first_schedule: Schedule = AS_THE_RUN
    second_schedule: Schedule = AS_THE_RUN

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(isinstance(stage, TwoStage) for stage in (self.first, self.second)):
            raise ValueError("a stage cannot have stages itself")

    @property
    def uses_rollouts(self) -> bool:  # type: ignore[override]
        return self.first.uses_rollouts or self.second.uses_rollouts

    @property
    def uses_demonstrations(self) -> bool:  # type: ignore[override]
        return self.first.uses_demonstrations or self.second.uses_demonstrations

    @property
    def needs(self) -> frozenset[str]:
        return self.first.needs | self.second.needs

    def stage(self, step: int, total_steps: int) -> Stage:
        switch = total_steps // 2 if self.first_steps is None else self.first_steps
        if switch >= total_steps:
            raise ValueError(
                f"first_steps={switch} leaves nothing of {total_steps} steps for the second stage"
            )
        if step < switch:
            return Stage(self.first, 0, switch, self.first_schedule)
        return Stage(self.second, switch, total_steps - switch, self.second_schedule)

    def terms(self) -> tuple[Term, ...]:
        raise TypeError("two_stage has no terms of its own: ask stage(step, total_steps).algorithm")


@dataclass(frozen=True)
class SFTThenRL(TwoStage):
    """SFT and then GRPO with the settings that beat mixed-policy methods at 7B parameters

    SFT at 5e-5 with 64 prompts a step, cosine with 10 % warm-up down to a tenth; then GRPO without std, with clip-higher and a
    token mean, at 1e-6 with 128 prompts a step and two updates each. Set `first_steps` and `trainer.steps` (the paper: 3
    epochs and 500 steps), learner.weight_decay=0.01 and rollout.num_rollouts=8.
    """

    name: ClassVar[str] = "sft_then_rl"
    second: Algorithm = field(
        default_factory=partial(GRPO, standardize=False, norm="token_mean", clip_high=0.28)
    )
    first_schedule: Schedule = SFT_AT_7B
    second_schedule: Schedule = RL_AT_7B
