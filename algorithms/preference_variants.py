"""Other losses of the pairs of DPO."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms.losses import logistic
from algorithms.preference import DPO
from algorithms.settings import limited
from algorithms.types import SequenceRecord


@dataclass(frozen=True)
class IPO(DPO):
    """Identity preference optimization: L = E_pairs[(Δ(y+) - Δ(y-) - 1/(2β))²], Δ = log π(y|x)/π_ref(y|x)

    The margin has a target, where DPO's grows without limit on pairs that are certain. Log-probs are sums, as
    in the paper; some codes take their means. Pairs as `dpo`.
    """

    name: ClassVar[str] = "ipo"
    paper: ClassVar[str] = "arXiv 2310.12036"

    def pair_loss(self, better: SequenceRecord, worse: SequenceRecord) -> tuple[float, tuple[float, float]]:
        margin = (better.logprob - better.reference_logprob) - (worse.logprob - worse.reference_logprob)
        excess = margin - 1 / (2 * self.beta)
        return excess**2, (2 * excess, -2 * excess)


@dataclass(frozen=True)
class SimPO(DPO):
    """Simple preference optimization: L = E_pairs[-log σ(β (mean log π(y+) - mean log π(y-)) - γ)]

    The means are over the tokens of a response, and there is no reference model. β = 2 and γ = 1 are in the
    range that the paper advises. Pairs as `dpo`.
    """

    name: ClassVar[str] = "simpo"
    paper: ClassVar[str] = "arXiv 2405.14734"
    capabilities: ClassVar[tuple[str, ...]] = ("values", "sequence_logprobs")
    beta: float = limited(2.0, least=1e-6)
    gamma: float = limited(1.0, least=0)

    def pair_loss(self, better: SequenceRecord, worse: SequenceRecord) -> tuple[float, tuple[float, float]]:
        margin = better.logprob / better.length - worse.logprob / worse.length
        value, slope = logistic(self.beta * margin - self.gamma)
        return value, (self.beta * slope / better.length, -self.beta * slope / worse.length)
