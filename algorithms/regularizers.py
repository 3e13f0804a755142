"""Terms that keep a policy broad or near a reference; no term at all when the coefficient is 0."""

from algorithms.losses import kl, negative_entropy
from algorithms.selections import sampled
from algorithms.term import Norm, Selection, Term
from algorithms.weights import constant


def entropy_bonus(coefficient: float, select: Selection = sampled) -> tuple[Term, ...]:
    """-coefficient · mean entropy of the tokens."""
    return (
        (Term("entropy", select, negative_entropy, constant(coefficient), needs=("entropy_gradient",)),)
        if coefficient
        else ()
    )


def kl_penalty(coefficient: float, estimator: str, norm: Norm = "token_mean") -> tuple[Term, ...]:
    """coefficient · KL(π‖reference) of sampled tokens."""
    return (
        (Term("kl", sampled, kl(estimator), constant(coefficient), norm=norm, needs=("reference",)),)
        if coefficient
        else ()
    )
