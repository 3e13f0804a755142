"""Supervised fine-tuning on demonstrations."""
from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses, selections
from algorithms.base import Algorithm, Term


@dataclass(frozen=True)
class SFT(Algorithm):
    """L = -log π(y|x) as one token mean over the optimizer step, never a mean of means (arXiv 2604.23747, bug 2)."""
    name: ClassVar[str] = "sft"
    uses_rollouts: ClassVar[bool] = False

    def terms(self) -> tuple[Term, ...]:
        return (Term("sft_demo", selections.demonstrations, losses.nll),)
