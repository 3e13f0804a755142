"""GSPO: the importance ratio of whole sequences."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses
from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.settings import limited
from algorithms.term import PerToken


@dataclass(frozen=True)
class GSPO(GRPO):
    """Group sequence policy optimization: GRPO with the ratio s = exp(mean_t log π/π_old) of whole sequences

    π_old is the learner's policy, because the clip range is smaller than the numerical difference between
    engine and learner in bfloat16. The clip has an effect only with several updates per step
    (learner.mini_batches). Stale rollouts need `correction`.
    """

    name: ClassVar[str] = "gspo"
    paper: ClassVar[str] = "arXiv 2507.18071"
    clip_low: float | None = limited(3e-4, least=0)
    clip_high: float | None = limited(4e-4, least=0)
    old: Old = "learner"

    def ratio(self) -> PerToken:
        return losses.sequence_ratio(self.old)
