"""GSPO: the importance ratio of whole sequences."""
from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses
from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.term import PerToken


@dataclass(frozen=True)
class GSPO(GRPO):
    """Group sequence policy optimization: GRPO with the ratio s = exp(mean_t log π/π_old) of the whole sequence

    π_old is the learner's: the clip is narrower than the numerical difference between engine and learner in bfloat16.
    """
    name: ClassVar[str] = "gspo"
    paper: ClassVar[str] = "arXiv 2507.18071"
    clip_low: float | None = 3e-4
    clip_high: float | None = 4e-4
    old: Old = "learner"

    def ratio(self) -> PerToken:
        return losses.sequence_ratio(self.old)
