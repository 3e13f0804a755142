"""ReLIFT with its buffer: RL, and now and then an SFT update on the prompts that RL did not solve."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms import selections
from algorithms.base import Algorithm
from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.regularizers import entropy_bonus
from algorithms.settings import limited
from algorithms.sft import SFT
from algorithms.term import Norm, Term
from algorithms.types import Completion, Group


@dataclass(frozen=True)
class BufferedSFT(SFT):
    """SFT with an entropy bonus over the tokens of the demonstrations."""

    entropy_coefficient: float = 0.0

    def terms(self) -> tuple[Term, ...]:
        return (*super().terms(), *entropy_bonus(self.entropy_coefficient, selections.demonstrations))


@dataclass(frozen=True)
class ReLIFTBuffered(GRPO):
    """ReLIFT: GRPO; demonstrations of prompts whose rollouts are all wrong are collected for SFT updates

    After the update of a step, `buffer_size` collected demonstrations, once there are so many, make one SFT
    update: a token mean with an entropy bonus of `sft_entropy`, with Adam's moments of its own and the rate
    `buffer_lr` (None: that of the step). `relift` has the SFT loss in the update of the same step instead.
    Settings are those of the published code (128; 64 in its example; 1e-6 for both rates), RL as in `relift`.
    Deviations: those of the newest step that are more than `buffer_size` wait for the next update (the
    authors empty the buffer); of several demonstrations of a prompt all are trained on; gradients are clipped
    at learner.max_grad_norm; a bad format has no reward of its own.
    """

    name: ClassVar[str] = "relift_buffered"
    paper: ClassVar[str] = "arXiv 2506.07527"
    uses_demonstrations: ClassVar[bool] = True
    clip_low: float | None = limited(0.2, least=0)
    clip_high: float | None = limited(0.28, least=0)
    standardize: bool = False
    norm: Norm = "token_mean"
    old: Old = "learner"
    correct_above: float = 0.5
    buffer_size: int = limited(128, least=1)
    buffer_lr: float | None = limited(None, least=0)
    sft_entropy: float = limited(0.001, least=0)

    def trains_on(self, group: Group, completion: Completion) -> bool:
        return completion.origin == "rollout" and super().trains_on(group, completion)

    def buffers(self, group: Group) -> bool:
        return bool(group.demonstrations and group.rollouts) and group.pass_rate(self.correct_above) == 0

    def buffered(self) -> Algorithm:
        return BufferedSFT(self.sft_entropy)
