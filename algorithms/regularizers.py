"""Terms that keep a policy broad or near a reference; no term at all when the coefficient is 0."""
from algorithms.losses import kl, negative_entropy
from algorithms.selections import rollouts
from algorithms.term import Selection, Term
from algorithms.weights import constant


def entropy_bonus(coefficient: float, select: Selection = rollouts, norm: str = "token_mean") -> tuple[Term, ...]:
    """-coefficient · H."""
    needs = ("entropy_gradient",)
    return (Term("entropy", select, negative_entropy, constant(coefficient), norm=norm, needs=needs),) if coefficient else ()


def kl_penalty(coefficient: float, estimator: str, norm: str = "token_mean") -> tuple[Term, ...]:
    """coefficient · KL(π‖reference) on the rollouts."""
    return (Term("kl", rollouts, kl(estimator), constant(coefficient), norm=norm, needs=("reference",)),) if coefficient else ()
