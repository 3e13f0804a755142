"""ReLIFT: RL, with SFT for the prompts that RL does not solve."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms.rl_sft import RLWithSFTLoss
from algorithms.settings import limited
from algorithms.term import Norm
from algorithms.types import Completion, Group


@dataclass(frozen=True)
class ReLIFT(RLWithSFTLoss):
    """ReLIFT: GRPO, and SFT on the demonstrations of prompts whose rollouts are all wrong

    Settings are those of the published example: Â without std, token mean, clip 0.2 and 0.28, no entropy
    bonus (0.001 in an older version). The SFT loss is a mean over the tokens of those demonstrations, however
    few. Approximation: the SFT loss of the hardest prompts is part of the update of the same step; the
    authors collect 128 of them (64 in the example) in a buffer and then make a separate update with an Adam
    state of its own, as `relift_buffered` does. Other deviations: gradients are clipped at
    learner.max_grad_norm (the example: 0.5), no update is skipped because of its gradient norm, and a bad
    format has no reward of its own (-1 in one version).
    """

    name: ClassVar[str] = "relift"
    paper: ClassVar[str] = "arXiv 2506.07527"
    clip_low: float | None = limited(0.2, least=0)
    clip_high: float | None = limited(0.28, least=0)
    norm: Norm = "token_mean"
    entropy_coefficient: float = limited(0.0, least=0)
    correct_above: float = 0.5

    def trains_on(self, group: Group, completion: Completion) -> bool:
        if completion.origin == "demo":
            return group.pass_rate(self.correct_above) == 0
        return super().trains_on(group, completion)
