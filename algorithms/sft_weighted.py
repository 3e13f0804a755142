"""SFT with token weights that keep the entropy: less loss where the policy is certain."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from algorithms import losses, selections, weights
from algorithms.settings import limited
from algorithms.sft import SFT
from algorithms.term import PerToken, Term


@dataclass(frozen=True)
class WeightedSFT(SFT):
    """SFT with a weight per token: L = E_demo[sg(w) · -log π]

    `weighting` is one of the alternatives to φ that CHORD's paper tests: `entropy` (w = H, in nats),
    `top_entropy` (the `top_share` of the tokens of a sequence with the highest entropy: its 5 %), `masked`
    (1[π ≤ max_probability]: its 0.4) or `focal` ((1 - π)^focal_power; it collapses there). There they are the
    SFT part of a mixed loss; here they are a stage of their own. Zero weights stay in the count.
    """

    name: ClassVar[str] = "sft_weighted"
    paper: ClassVar[str] = "arXiv 2508.11408, ablations"
    weighting: Literal["entropy", "top_entropy", "masked", "focal"] = "entropy"
    top_share: float = limited(0.05, least=0, most=1)
    max_probability: float = limited(0.4, least=0, most=1)
    focal_power: float = limited(1.0, least=0)

    def terms(self) -> tuple[Term, ...]:
        return (Term("sft_demo", selections.demonstrations, losses.nll, self.weight()),)

    def weight(self) -> PerToken:
        choices = {
            "entropy": weights.entropy_share(1.0),
            "top_entropy": weights.highest_entropy(selections.demonstrations, self.top_share),
            "masked": weights.probability_between(0.0, self.max_probability),
            "focal": weights.improbability(self.focal_power),
        }
        return choices[self.weighting]


@dataclass(frozen=True)
class EAFT(SFT):
    """Entropy-adaptive fine-tuning: L = E_demo[sg(min(H / ln k, 1))^α · -log π]

    Tokens of which the policy is certain and which it would not have written change least. Deviation: H is
    that of the whole vocabulary; the authors take the entropy of the k = 20 most probable tokens,
    renormalised, which is at most ln k. Whether their code divides by ln k differs between its copies.
    """

    name: ClassVar[str] = "eaft"
    paper: ClassVar[str] = "arXiv 2601.02151"
    top_k: int = limited(20, least=2)
    power: float = limited(1.0, least=0)

    def terms(self) -> tuple[Term, ...]:
        weight = weights.entropy_share(math.log(self.top_k), self.power, most=1.0)
        return (Term("sft_demo", selections.demonstrations, losses.nll, weight),)
