"""DGRO and OPMD: policy gradient with a squared log-ratio to the sampling policy in place of a clip."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from algorithms import losses, selections, weights
from algorithms.base import Algorithm
from algorithms.credit import among_rollouts, group_advantages, soft_advantages
from algorithms.losses import Old
from algorithms.settings import limited
from algorithms.term import Term
from algorithms.types import Group


@dataclass(frozen=True)
class DGRO(Algorithm):
    """Direct group reward optimization: L = E[-β1 (R - V) log π(y|x) + β2 (log π(y|x) - log π_old(y|x))²]

    β1 is `reward_coefficient`, β2 `ratio_coefficient`: exploration and distance are weighted apart. V is the
    mean reward of the group, or with `value: soft` β · log mean exp(R/β), β = `value_temperature`. log π(y|x)
    is the sum over the tokens, and the mean is over sequences. π_old is the policy that sampled, with the
    engine's log-probs. Second hand: the equation is that of two independent readings of the paper. Its values
    of β1 and β2, which V it uses and whether it divides by length are unknown: all are choices here. For
    stale rollouts, since the quadratic term replaces the clip.
    """

    name: ClassVar[str] = "dgro"
    paper: ClassVar[str] = "arXiv 2505.12951"
    uses_demonstrations: ClassVar[bool] = False
    min_rollouts: ClassVar[int] = 2
    reward_coefficient: float = limited(1.0, least=0)
    ratio_coefficient: float = limited(0.05, least=0)
    value: Literal["mean", "soft"] = "mean"
    value_temperature: float = limited(1.0, least=1e-3)
    old: Old = "behavior"

    def terms(self) -> tuple[Term, ...]:
        reward, distance = map(weights.constant, (self.reward_coefficient, self.ratio_coefficient))
        gain = losses.advantage_weighted(losses.log_prob)
        square = losses.squared_sequence_log_ratio(self.old)
        norm = "sequence_mean_token_sum"
        return (
            Term("policy", selections.rollouts, gain, reward, norm=norm),
            Term("distance", selections.rollouts, square, distance, norm=norm),
        )

    def advantages(self, group: Group) -> list[float]:
        if self.value == "mean":
            return among_rollouts(group, partial(group_advantages, standardize=False))
        return among_rollouts(group, partial(soft_advantages, temperature=self.value_temperature))


@dataclass(frozen=True)
class OPMD(DGRO):
    """Online policy mirror descent: L = E[-(R - mean R) log π(y|x) + τ/2 (log π(y|x) - log π_old(y|x))²]

    The gradient of (R - V - τ log π/π_old)² up to a factor, with the group mean for V = τ log Z, as in Kimi
    k1.5. τ/2 is `ratio_coefficient`. The paper's τ is unknown (0.1 is a choice), and the form is given from
    memory, not from the text. For large batches of rollouts that several updates share.
    """

    name: ClassVar[str] = "opmd"
    paper: ClassVar[str] = "arXiv 2501.12599"
