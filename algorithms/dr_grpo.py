"""Dr.GRPO: GRPO without its biases by response length and by the difficulty of a prompt."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.term import Norm


@dataclass(frozen=True)
class DrGRPO(GRPO):
    """GRPO done right: GRPO with Â = R - mean, and the sum of each sequence divided by a constant

    The constant is rollout.max_new_tokens; GRPO divides by the length of the sequence.
    """

    name: ClassVar[str] = "dr_grpo"
    paper: ClassVar[str] = "arXiv 2503.20783"
    standardize: bool = False
    norm: Norm = "sequence_mean_constant"
    old: Old = "learner"
