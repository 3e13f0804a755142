"""Methods with the full KL to a reference model: SFT_KL and on-policy distillation."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses, selections, weights
from algorithms.base import Algorithm
from algorithms.regularizers import full_kl
from algorithms.settings import limited
from algorithms.sft import SFT
from algorithms.term import Term


@dataclass(frozen=True)
class SFTKL(SFT):
    """SFT with KL: L = E_demo[-log π] + λ · E_demo[KL(π‖π_ref)]

    The KL is the sum over the whole vocabulary at the tokens of the demonstrations: estimates from the token
    alone would be wrong there, because the policy did not sample it. λ is `kl_coefficient`, 0.2 in SRFT's
    paper, where it is a baseline; which KL that paper computes is not stated. π_ref is the model that
    training starts from unless learner.reference names another. To keep what a model can do besides the
    demonstrations.
    """

    name: ClassVar[str] = "sft_kl"
    paper: ClassVar[str] = "arXiv 2506.19767, baseline"
    kl_coefficient: float = limited(0.2, least=0)

    def terms(self) -> tuple[Term, ...]:
        demonstrations = selections.demonstrations
        weight = weights.constant(self.kl_coefficient)
        kl_term = Term("kl", demonstrations, full_kl, weight, needs=("reference_kl",))
        return (Term("sft_demo", demonstrations, losses.nll), kl_term)


@dataclass(frozen=True)
class OnPolicyDistillation(Algorithm):
    """On-policy distillation: L = E_rollouts[KL(π‖teacher)] at the tokens that the policy sampled

    The teacher is learner.reference, a model with the same vocabulary; without it the loss is 0. The KL is
    the sum over the whole vocabulary, and the gradient is not taken through sampling, as in GKD with its
    reverse KL and on-policy data only. Rewards are recorded, but have no effect.
    """

    name: ClassVar[str] = "distill"
    paper: ClassVar[str] = "arXiv 2306.13649"
    uses_demonstrations: ClassVar[bool] = False

    def terms(self) -> tuple[Term, ...]:
        return (Term("kl", selections.sampled, full_kl, needs=("reference_kl",)),)
