"""T1: RL with an anchor that follows the policy, and penalties on repetition and length."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.settings import limited
from algorithms.types import Completion, Group


@dataclass(frozen=True)
class T1(GRPO):
    """T1: GRPO with KL to a moving anchor, an entropy bonus, and R - penalties for repetition and truncation

    The anchor is the reference model: every `anchor_every` steps it becomes the policy; with `anchor_rate` it
    moves by that share before every step instead (an average over time; not in bfloat16). A response that was
    cut at the limit loses `truncation_penalty`. The paper samples many responses at a high temperature: set
    rollout.num_rollouts and rollout.temperature. Unknown, and choices here: all coefficients, the schedule of
    the anchor, the length of repeated sequences, and whether all responses are trained on.
    """

    name: ClassVar[str] = "t1"
    paper: ClassVar[str] = "arXiv 2501.11651"
    old: Old = "learner"
    kl_coefficient: float = limited(0.001, least=0)
    entropy_coefficient: float = limited(0.001, least=0)
    repetition_penalty: float = limited(0.5, least=0)
    truncation_penalty: float = limited(0.5, least=0)
    anchor_every: int = limited(50, least=1)
    anchor_rate: float | None = limited(None, least=0, most=1)

    def reference_rate(self, step: int) -> float:
        if step == 0:
            return 0.0
        if self.anchor_rate is not None:
            return self.anchor_rate
        return float(step % self.anchor_every == 0)

    def shaped_reward(self, group: Group, completion: Completion) -> float:
        reward = super().shaped_reward(group, completion)
        return reward - self.truncation_penalty * (completion.finish_reason == "length")
