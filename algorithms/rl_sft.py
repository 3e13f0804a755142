"""RL with SFT loss: both in one update."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses, selections, weights
from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.settings import limited
from algorithms.term import Norm, Selection, Term


@dataclass(frozen=True)
class RLWithSFTLoss(GRPO):
    """RL with SFT loss: L = -1/(B·L_max) Σ_rollouts r Â + λ · E_demo[-log π], r = π/π_old

    The multi-task baseline of LUFFY, with the settings of its script: Â = R - mean over the rollouts alone,
    no clip, both parts in one update, an entropy bonus of 0.001 over all tokens. λ is `sft_coefficient`. The
    authors' 7 rollouts and 1 demonstration are rollout.num_rollouts=7 here. Deviations: the RL sum is divided
    by the number of sequences B too (the script: by L_max alone, in each micro-batch), and the SFT part is
    one token mean over the update (the script: a sum of the means of micro-batches). `norm: constant` with
    norm_constant = L_max · ranks · micro-batches gives the script's proportion.
    """

    name: ClassVar[str] = "rl_sft"
    paper: ClassVar[str] = "arXiv 2504.14945, baseline"
    uses_demonstrations: ClassVar[bool] = True
    bonus_tokens: ClassVar[Selection] = staticmethod(selections.everything)
    clip_low: float | None = limited(None, least=0)
    clip_high: float | None = limited(None, least=0)
    standardize: bool = False
    norm: Norm = "sequence_mean_constant"
    old: Old = "learner"
    sft_coefficient: float = 1.0
    entropy_coefficient: float = limited(0.001, least=0)

    def terms(self) -> tuple[Term, ...]:
        coefficient = weights.constant(self.sft_coefficient)
        return (*super().terms(), Term("sft_demo", selections.demonstrations, losses.nll, coefficient))
