"""SFT and then RL: two stages with settings that were found for models of 7B parameters."""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from algorithms.base import Algorithm
from algorithms.grpo import GRPO
from algorithms.settings import Schedule
from algorithms.two_stage import TwoStage

SFT_AT_7B = Schedule(
    lr=5e-5,
    lr_schedule="cosine",
    warmup=0.1,
    min_lr_ratio=0.1,
    groups_per_step=64,
    mini_batches=1,
    weight_decay=0.01,
)
RL_AT_7B = Schedule(lr=1e-6, lr_schedule="constant", warmup=0.0, groups_per_step=128, mini_batches=2)
GRPO_AT_7B = partial(GRPO, standardize=False, norm="token_mean", clip_high=0.28, old="learner")


@dataclass(frozen=True)
class SFTThenRL(TwoStage):
    """SFT and then GRPO, with settings that are better than mixed-policy methods at 7B parameters

    SFT has a learning rate of 5e-5, a weight decay of 0.01 and 64 prompts a step, cosine with 10 % warm-up
    down to a tenth; then GRPO without std, with clip-higher and a token mean, has 1e-6 and 128 prompts a step
    in two updates, with the run's weight decay, since the paper's is stated for SFT. Set `first_steps` and
    `trainer.steps` (the paper: 3 epochs and 500 steps) and rollout.num_rollouts=8. The paper's results are
    means of three seeds.
    """

    name: ClassVar[str] = "sft_then_rl"
    paper: ClassVar[str] = "arXiv 2604.23747"
    second: Algorithm = field(default_factory=GRPO_AT_7B)
    first_schedule: Schedule = SFT_AT_7B
    second_schedule: Schedule = RL_AT_7B
