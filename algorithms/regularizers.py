"""Terms that keep the entropy high, or the policy near a reference model; none if the coefficient is 0."""

from typing import Literal

from torch import Tensor

from algorithms.batch import Batch, PolicyOutput
from algorithms.losses import LOG_RATIO_LIMIT, advantage_weighted
from algorithms.selections import sampled
from algorithms.term import Norm, PerToken, Selection, Term, labelled
from algorithms.weights import constant

Estimator = Literal["k1", "k2", "k3", "k3_plus", "full"]
EntropyKind = Literal["plain", "advantage"]


def entropy_bonus(
    coefficient: float, select: Selection = sampled, kind: EntropyKind = "plain"
) -> tuple[Term, ...]:
    """-coefficient · mean entropy of the selected tokens, in nats; `advantage`: of Â · entropy (IBRO)."""
    if not coefficient:
        return ()
    loss = negative_entropy if kind == "plain" else advantage_weighted(entropy)
    return (Term("entropy", select, loss, constant(coefficient), needs=("entropy_gradient",)),)


def kl_penalty(
    coefficient: float, estimator: Estimator, norm: Norm = "token_mean", norm_constant: float | None = None
) -> tuple[Term, ...]:
    """coefficient · KL(π‖reference) at the sampled tokens, in nats; `full`: over the whole vocabulary."""
    if not coefficient:
        return ()
    need = "reference_kl" if estimator == "full" else "reference"
    return (
        Term(
            name="kl",
            select=sampled,
            loss=full_kl if estimator == "full" else kl(estimator),
            weight=constant(coefficient),
            norm=norm,
            constant=norm_constant,
            needs=(need,),
        ),
    )


@labelled
def kl(estimator: Estimator) -> PerToken:
    """Estimates KL(π‖reference) at sampled tokens, in nats, from d = log π/reference, clamped to ±20.

    k1 = d, k2 = d²/2, k3 = exp(-d) + d - 1; k3_plus has the value of k3 and the gradient of k2. As a loss,
    only k2 and k3_plus have the gradient of KL(π‖reference) in expectation, on policy. In expectation the
    gradient of k1 is zero, and the gradient of k3 is that of KL(reference‖π).
    """

    def loss(batch: Batch, policy: PolicyOutput) -> Tensor:
        d_BT = (policy.logprobs_BT - policy.reference_BT).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        if estimator == "k1":
            return d_BT
        k2_BT = 0.5 * d_BT.square()
        if estimator == "k2":
            return k2_BT
        k3_BT = (-d_BT).exp() + d_BT - 1
        return k3_BT if estimator == "k3" else k2_BT - k2_BT.detach() + k3_BT.detach()

    return loss


def full_kl(batch: Batch, policy: PolicyOutput) -> Tensor:
    """KL(π‖reference) of each token, the sum over the vocabulary; a term with it needs "reference_kl"."""
    return policy.kl_BT("reference_kl")


def teacher_kl(batch: Batch, policy: PolicyOutput) -> Tensor:
    """KL(π‖π that has seen a demonstration) of each token; a term with this loss needs "teacher_kl"."""
    return policy.kl_BT("teacher_kl")


def entropy(batch: Batch, policy: PolicyOutput) -> Tensor:
    """H of the distribution of each token, in nats; a term with this loss needs "entropy_gradient"."""
    return policy.entropies_BT


def negative_entropy(batch: Batch, policy: PolicyOutput) -> Tensor:
    """-H of the distribution of each token; a term with this loss needs "entropy_gradient"."""
    return -policy.entropies_BT
