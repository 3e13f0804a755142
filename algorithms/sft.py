"""SFT: supervised fine-tuning on demonstrations."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses, selections
from algorithms.base import Algorithm
from algorithms.term import Term
from algorithms.types import Group


@dataclass(frozen=True)
class SFT(Algorithm):
    """Supervised fine-tuning: L = E_demo[-log π(y|x)]

    One token mean over the whole update, never a mean of means (arXiv 2604.23747, bug 2). A prompt without
    demonstration is replaced by another, from later in the seeded order.
    """

    name: ClassVar[str] = "sft"
    paper: ClassVar[str] = "arXiv 2506.19767, Eq. 1"
    uses_rollouts: ClassVar[bool] = False
    max_refills: ClassVar[int] = 10_000

    def terms(self) -> tuple[Term, ...]:
        return (Term("sft_demo", selections.demonstrations, losses.nll),)

    def has_signal(self, group: Group) -> bool:
        return bool(group.demonstrations)
