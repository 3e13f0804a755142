"""GSPO: the importance ratio of whole sequences."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses
from algorithms.base import limited
from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.term import PerToken


@dataclass(frozen=True)
class GSPO(GRPO):
    """Group sequence policy optimization: GRPO with the ratio s = exp(mean_t log π/π_old) of the whole sequence

    π_old is the learner's: the clip is narrower than the numerical difference between engine and learner in bfloat16. It
    acts only with several updates per step (learner.mini_batches); stale rollouts need `correction`.
    """

    name: ClassVar[str] = "gspo"
    paper: ClassVar[str] = "arXiv 2507.18071"
    clip_low: float | None = limited(3e-4, least=0)
    clip_high: float | None = limited(4e-4, least=0)
    old: Old = "learner"

    def ratio(self) -> PerToken:
        return losses.sequence_ratio(self.old)
