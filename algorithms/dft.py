"""DFT: supervised fine-tuning with the probability of each token as its weight."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses, selections, weights
from algorithms.sft import SFT
from algorithms.term import Term


@dataclass(frozen=True)
class DFT(SFT):
    """Dynamic fine-tuning: L = E_demo[sg(π) · -log π]

    Deviation: one token mean over the whole update; the authors' trainer averages the means of micro-batches.
    """

    name: ClassVar[str] = "dft"
    paper: ClassVar[str] = "arXiv 2508.05629"

    def terms(self) -> tuple[Term, ...]:
        return (Term("sft_demo", selections.demonstrations, losses.nll, weights.probability),)
