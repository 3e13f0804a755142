"""RL with SFT loss: both in one update."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses, selections, weights
from algorithms.grpo import GRPO
from algorithms.term import Term


@dataclass(frozen=True)
class RLWithSFTLoss(GRPO):
    """RL with SFT loss: L = L_GRPO(rollouts) + λ · E_demo[-log π]

    The multi-task baseline of LUFFY: Â over the rollouts alone, both parts in one update, an entropy bonus of
    0.001. λ is `sft_coefficient`.
    """

    name: ClassVar[str] = "rl_sft"
    paper: ClassVar[str] = "arXiv 2504.14945, baseline"
    uses_demonstrations: ClassVar[bool] = True
    sft_coefficient: float = 1.0
    entropy_coefficient: float = 0.001

    def terms(self) -> tuple[Term, ...]:
        coefficient = weights.constant(self.sft_coefficient)
        return (*super().terms(), Term("sft_demo", selections.demonstrations, losses.nll, coefficient))
