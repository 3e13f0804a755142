"""Dr.GRPO: GRPO without its two biases."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms.grpo import GRPO
from algorithms.term import Norm


@dataclass(frozen=True)
class DrGRPO(GRPO):
    """GRPO done right: GRPO with Â = R - mean, and each sequence's sum divided by rollout.max_new_tokens instead of its length"""

    name: ClassVar[str] = "dr_grpo"
    paper: ClassVar[str] = "arXiv 2503.20783"
    standardize: bool = False
    norm: Norm = "sequence_mean_constant"
