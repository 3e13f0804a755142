"""Interchangeable algorithms. This package imports torch and the standard library, nothing else."""
from algorithms.base import Algorithm, Stage, Term
from algorithms.grpo import GRPO
from algorithms.sft import SFT
from algorithms.srft import SRFT
from algorithms.two_stage import TwoStage
from algorithms.types import Batch, Completion, Group, PolicyOutput

REGISTRY: dict[str, type[Algorithm]] = {cls.name: cls for cls in (SRFT, SFT, GRPO, TwoStage)}

__all__ = ["GRPO", "REGISTRY", "SFT", "SRFT", "Algorithm", "Batch", "Completion", "Group", "PolicyOutput", "Stage", "Term", "TwoStage"]
