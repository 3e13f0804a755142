"""ReLIFT: RL, with SFT for the prompts that RL does not solve."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms.rl_sft import RLWithSFTLoss
from algorithms.types import Completion, Group


@dataclass(frozen=True)
class ReLIFT(RLWithSFTLoss):
    """ReLIFT: GRPO, and SFT on the demonstrations of prompts whose rollouts are all wrong

    The SFT loss is a mean over the tokens of those demonstrations, however few; the entropy bonus of 0.001 is
    that of `rl_sft`. Approximation: the SFT loss of the hardest prompts is part of the update of the same
    step; the authors collect 128 of them in a buffer and then make a separate update.
    """

    name: ClassVar[str] = "relift"
    paper: ClassVar[str] = "arXiv 2506.07527"
    correct_above: float = 0.5

    def trains_on(self, group: Group, completion: Completion) -> bool:
        if completion.origin == "demo":
            return group.pass_rate(self.correct_above) == 0
        return super().trains_on(group, completion)
