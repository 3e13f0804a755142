"""iw-SFT: importance-weighted supervised fine-tuning."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from algorithms import losses, selections, weights
from algorithms.sft import SFT
from algorithms.term import Term

BOUNDS = {"sequence": (0.0, 16.0), "token": (0.2, 1.8)}


@dataclass(frozen=True)
class IWSFT(SFT):
    """Importance-weighted SFT: L = E_demo[sg(w) · -log π], w = clamp(exp(τ · mean_t log π/π_ref), low, high)

    π_ref is the frozen reference model and τ is `temperature`. `level: token` weights each token by its own
    ratio. The default bounds are the authors': 0 and 16 for sequences, 0.2 and 1.8 for tokens. Deviations:
    the reference is the model that training starts from unless learner.reference names another; τ applies to
    `level: token` too, where the authors' code has none, which is the same at the default of 1.
    """

    name: ClassVar[str] = "iw_sft"
    paper: ClassVar[str] = "arXiv 2507.12856"
    level: Literal["sequence", "token"] = "sequence"
    temperature: float = 1.0
    low: float | None = None
    high: float | None = None

    def terms(self) -> tuple[Term, ...]:
        default_low, default_high = BOUNDS[self.level]
        low = default_low if self.low is None else self.low
        high = default_high if self.high is None else self.high
        weight = weights.importance_to_reference(self.level, self.temperature, low, high)
        return (Term("sft_demo", selections.demonstrations, losses.nll, weight, needs=("reference",)),)
