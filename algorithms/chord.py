"""CHORD: on-policy RL and SFT in one loss, weighted by a global coefficient μ and a weight φ per token."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses, selections, weights
from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.schedules import warmup_then_cosine
from algorithms.settings import limited
from algorithms.term import Norm, PerToken, Term


@dataclass(frozen=True)
class CHORD(GRPO):
    """L = (1-μ) L_GRPO + μ E_demo[weight · -log π]"""

    paper: ClassVar[str] = "arXiv 2508.11408"
    uses_demonstrations: ClassVar[bool] = True
    norm: Norm = "token_mean"
    dual_clip: float | None = limited(3.0, least=1)
    old: Old = "learner"

    def mu(self, step: int) -> float:
        """μ at an optimizer step, counted from the first step of the stage."""
        raise NotImplementedError

    def one_minus_mu(self, step: int) -> float:
        return 1 - self.mu(step)

    def sft_weight(self) -> PerToken:
        return weights.scheduled(self.mu)

    def terms(self) -> tuple[Term, ...]:
        rl_terms = [self._rl_share(term) for term in super().terms()]
        sft_term = Term("sft_demo", selections.demonstrations, losses.nll, self.sft_weight())
        return (*rl_terms, sft_term)

    def _rl_share(self, term: Term) -> Term:
        """The term with its weight multiplied by 1-μ."""
        share = weights.scheduled(self.one_minus_mu)
        return dataclasses.replace(term, weight=weights.combined(term.weight, share))


@dataclass(frozen=True)
class CHORDMu(CHORD):
    """CHORD-μ: L = (1-μ) L_GRPO + μ E_demo[-log π], μ from `peak` to `valley` along half a cosine

    L_GRPO is a token mean with a clip of 0.2 and a dual clip of 3, as in the authors' implementation.
    Deviation: the demonstrations are those of the rollouts' prompts; the authors take them from a separate
    data set.
    """

    name: ClassVar[str] = "chord_mu"
    peak: float = limited(0.9, least=0, most=1)
    valley: float = limited(0.05, least=0, most=1)
    warmup_steps: int = limited(0, least=0)
    decay_steps: int = limited(200, least=1)

    def mu(self, step: int) -> float:
        return warmup_then_cosine(step, self.warmup_steps, self.peak, self.valley, self.decay_steps)


@dataclass(frozen=True)
class CHORDPhi(CHORD):
    """CHORD-φ: L = (1-μ) L_GRPO + μ E_demo[φ · -log π], φ = sg(π (1-π)), μ constant

    Deviation: the same as that of CHORD-μ.
    """

    name: ClassVar[str] = "chord_phi"
    constant_mu: float = limited(0.1, least=0, most=1)

    def mu(self, step: int) -> float:
        return self.constant_mu

    def sft_weight(self) -> PerToken:
        return weights.product(weights.uncertainty, super().sft_weight())
