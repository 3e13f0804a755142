"""GRPO without the gradient of tokens that are probable already."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.settings import limited


@dataclass(frozen=True)
class ProbabilityMask(GRPO):
    """GRPO on improbable tokens: L_GRPO with the weight 1[π ≤ τ] on each token

    An experiment of SRFT's appendix A.2, which finds that RL without the tokens above τ = 0.5, 0.8 or 0.9 is
    as good. τ is `max_probability`, which every method of the GRPO family has. Tokens that are left out stay
    in the count, because no count may depend on the model; whether they do in the experiment is unknown.
    """

    name: ClassVar[str] = "grpo_probability_mask"
    paper: ClassVar[str] = "arXiv 2506.19767, appendix A.2"
    old: Old = "learner"
    max_probability: float | None = limited(0.8, least=0, most=1)
