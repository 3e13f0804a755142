"""CHORD: on-policy RL and SFT, harmonised by a global coefficient μ and a token-wise weight φ."""
import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses, selections, weights
from algorithms.grpo import GRPO
from algorithms.schedules import warmup_then_cosine
from algorithms.term import Term, one


@dataclass(frozen=True)
class CHORDMu(GRPO):
    """CHORD-μ: L = (1-μ) L_GRPO + μ E_demo[-log π], μ from `peak` to `valley` along half a cosine

    Deviation: demonstrations belong to the prompts of the rollouts; the authors take them from a data set of their own.
    """
    name: ClassVar[str] = "chord_mu"
    paper: ClassVar[str] = "arXiv 2508.11408"
    uses_demonstrations: ClassVar[bool] = True
    peak: float = 0.9
    valley: float = 0.05
    warmup_steps: int = 0
    decay_steps: int = 200

    def mu(self, step: int) -> float:
        return warmup_then_cosine(step, self.warmup_steps, self.peak, self.valley, self.decay_steps)

    def one_minus_mu(self, step: int) -> float:
        return 1 - self.mu(step)

    def terms(self) -> tuple[Term, ...]:
        share = weights.scheduled(self.one_minus_mu)
        rl = (dataclasses.replace(term, weight=share if term.weight is one else weights.product(term.weight, share)) for term in super().terms())
        return (*rl, self.sft_term())

    def sft_term(self) -> Term:
        return Term("sft_demo", selections.demonstrations, losses.nll, weights.scheduled(self.mu))


@dataclass(frozen=True)
class CHORDPhi(CHORDMu):
    """CHORD-φ: L = (1-μ) L_GRPO + μ E_demo[φ · -log π], φ = sg(π (1-π)), μ constant

    Deviation: as CHORD-μ.
    """
    name: ClassVar[str] = "chord_phi"
    peak: float = 0.1
    valley: float = 0.1

    def sft_term(self) -> Term:
        return Term("sft_demo", selections.demonstrations, losses.nll, weights.product(weights.uncertainty, weights.scheduled(self.mu)))
