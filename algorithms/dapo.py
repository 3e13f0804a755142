"""DAPO: decoupled clip and dynamic sampling."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from algorithms.base import limited
from algorithms.credit import among_rollouts, group_advantages, overlong_penalty
from algorithms.grpo import GRPO
from algorithms.term import Norm
from algorithms.types import Completion, Group


@dataclass(frozen=True)
class DAPO(GRPO):
    """DAPO: GRPO with clip-higher, a token mean, dynamic sampling and a penalty on overlong responses

    R' = R + min(-(|y| - (L_max - buffer))/buffer · factor, 0), L_max = rollout.max_new_tokens, buffer = overlong_buffer · L_max.
    Groups whose rollouts are all correct or all wrong are discarded for other prompts, from later in the seeded order.
    Deviations: at most `max_refills` groups are discarded for each place in a step, and a group without signal that is
    left then is trained on with advantage 0 (the authors generate anew, at most 10 times); the buffer is given as a share.
    """

    name: ClassVar[str] = "dapo"
    paper: ClassVar[str] = "arXiv 2503.14476"
    clip_high: float | None = limited(0.28, least=0)
    norm: Norm = "token_mean"
    overlong_buffer: float = limited(0.2, least=0, most=1)  # 4096 of 20480 tokens
    overlong_factor: float = 1.0
    correct_above: float = 0.5
    max_refills: int = limited(9, least=0)

    def advantages(self, group: Group) -> list[float]:
        if not self.has_signal(group):
            return [0.0] * len(group.completions)

        def shaped(completion: Completion) -> float:
            limit = group.max_new_tokens
            buffer = round(self.overlong_buffer * limit)
            return completion.reward + (
                overlong_penalty(len(completion.ids), limit, buffer, self.overlong_factor) if buffer else 0.0
            )

        return among_rollouts(group, partial(group_advantages, standardize=self.standardize), shaped)

    def has_signal(self, group: Group) -> bool:
        return len(group.rollouts) < 2 or 0 < group.pass_rate(self.correct_above) < 1
