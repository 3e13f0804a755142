"""DAPO: decoupled clip and dynamic sampling policy optimization."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms.credit import overlong_penalty
from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.settings import limited
from algorithms.term import Norm
from algorithms.types import Completion, Group


@dataclass(frozen=True)
class DAPO(GRPO):
    """DAPO: GRPO with clip-higher, a token mean, dynamic sampling and a penalty on overlong responses

    R' = R + min(-(|y| - (L_max - buffer)) / buffer · factor, 0), where L_max is rollout.max_new_tokens and
    the buffer is `overlong_buffer` · L_max (the authors: 4096 of 20480 tokens). The authors' rewards are 1
    and -1 and their factor is 1; 0.5 is the same share of the range for rewards of 1 and 0. A group whose
    rollouts are all correct or all wrong is replaced by the group of another prompt, from later in the seeded
    order.
    Deviations: for each place in a step at most `max_refills` groups are replaced, and a group without signal
    that is left after that is trained on with advantage 0 (the authors generate again, at most 10 times); the
    buffer is given as a share of L_max.
    """

    name: ClassVar[str] = "dapo"
    paper: ClassVar[str] = "arXiv 2503.14476"
    clip_high: float | None = limited(0.28, least=0)
    norm: Norm = "token_mean"
    overlong_buffer: float = limited(0.2, least=0, most=1)
    old: Old = "learner"
    overlong_factor: float = limited(0.5, least=0)
    correct_above: float = 0.5
    max_refills: int = limited(9, least=0)

    def advantages(self, group: Group) -> list[float]:
        if not self.has_signal(group):
            return [0.0] * len(group.completions)
        return super().advantages(group)

    def has_signal(self, group: Group) -> bool:
        return len(group.rollouts) < 2 or 0 < group.pass_rate(self.correct_above) < 1

    def shaped_reward(self, group: Group, completion: Completion) -> float:
        """R' of a rollout; R where the buffer rounds to 0 tokens."""
        reward = super().shaped_reward(group, completion)
        buffer = round(self.overlong_buffer * group.max_new_tokens)
        if buffer == 0:
            return reward
        length = len(completion.ids)
        return reward + overlong_penalty(length, group.max_new_tokens, buffer, self.overlong_factor)
