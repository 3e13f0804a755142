"""CHORD with other weights of the SFT part, as tested in its paper."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses, selections, weights
from algorithms.chord import CHORD, CHORDPhi
from algorithms.grpo import GRPO
from algorithms.settings import limited
from algorithms.term import PerToken, Term
from algorithms.types import SequenceRecord


@dataclass(frozen=True)
class CHORDIS(CHORDPhi):
    """CHORD with SFT-IS: L = (1-μ) L_GRPO + μ E_demo[sg(π) · -log π], μ constant

    The weight π is that of DFT. Deviation: the same as that of CHORD-μ.
    """

    name: ClassVar[str] = "chord_is"

    def sft_weight(self) -> PerToken:
        return weights.product(weights.probability, CHORD.sft_weight(self))


@dataclass(frozen=True)
class CHORDAdaptive(CHORD):
    """CHORD with adaptive μ: L = (1-μ) L_GRPO + μ E_demo[-log π], μ = max(0, τ - mean reward of the step)

    τ is `target_reward`; of the tested values the paper finds 0.5 good and 0.7 bad. The mean is over all
    rollouts of the step. Deviation: the same as that of CHORD-μ.
    """

    name: ClassVar[str] = "chord_adaptive"
    target_reward: float = limited(0.5, least=0, most=1)

    def terms(self) -> tuple[Term, ...]:
        rl_terms = []
        for term in GRPO.terms(self):
            share = weights.combined(term.weight, weights.value("one_minus_mu"))
            rl_terms.append(dataclasses.replace(term, weight=share, needs=(*term.needs, "values")))
        mu = weights.value("mu")
        return (*rl_terms, Term("sft_demo", selections.demonstrations, losses.nll, mu, needs=("values",)))

    def sequence_values(self, records: Sequence[SequenceRecord]) -> Mapping[str, Sequence[float]]:
        rewards = [record.reward for record in records if record.origin == "rollout"]
        mean = statistics.fmean(rewards) if rewards else 0.0
        mu = max(0.0, self.target_reward - mean)
        return {"mu": [mu] * len(records), "one_minus_mu": [1 - mu] * len(records)}
