"""The stated formula of what a step costs, by which methods are compared at equal budgets."""

from collections.abc import Mapping
from typing import Any

TRAINED = 6  # operations of a parameter and a token trained on: forward pass 2, backward pass 4
GENERATED = 2  # operations of a parameter and a token generated


def teraflops(parameters: int, trained: float, generated: float) -> float:
    """Floating-point operations in units of 10^12, as arXiv 2604.23747 counts them.

    Prompt tokens, attention over the context, and passes of reference models are not counted.

    Args:
        parameters: of the model, embeddings included.
        trained, generated: numbers of response tokens.
    """
    return parameters * (TRAINED * trained + GENERATED * generated) / 1e12


def step_cost(record: Mapping[str, Any], parameters: int) -> dict[str, float]:
    """The metric `operations` of a step, from its metrics."""
    return {"operations": teraflops(parameters, record["tokens"], record["tokens/generated"])}
