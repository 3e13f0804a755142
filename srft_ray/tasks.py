"""The families of built-in tasks: a reasoning-gym dataset with settings each, and programs to write.

Neutral: it imports no room.
"""

import difflib
import random
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class TaskFamily:
    """One reasoning-gym dataset and the settings it is used with."""

    dataset: str
    settings: dict[str, Any]


def _arithmetic(terms: int, operators: str, min_digits: int) -> TaskFamily:
    settings = {
        "min_terms": terms,
        "max_terms": terms,
        "min_digits": min_digits,
        "max_digits": 2,
        "operators": list(operators),
        "allow_parentheses": False,
    }
    return TaskFamily("basic_arithmetic", settings)


FAMILIES: dict[str, TaskFamily] = {
    "sums": _arithmetic(3, "+-", 1),
    "products": _arithmetic(2, "*", 2),
    "equations": TaskFamily(
        "simple_equations",
        {"min_terms": 2, "max_terms": 2, "max_value": 12, "operators_weights": [0.5, 0.5, 0.0]},
    ),
    "long_sums": _arithmetic(4, "+-", 1),
}

PROGRAM_FAMILIES = ("programs",)


def check_family(name: str) -> None:
    """Raises ValueError where there is no such family."""
    known = [*FAMILIES, *PROGRAM_FAMILIES]
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown task family {name!r}: did you mean {nearest!r}? The families are {', '.join(known)}"
        )


@cache
def task_dataset(name: str, seed: str) -> Any:
    """The reasoning-gym dataset of the family `name`. Raises ValueError where there is no such family."""
    check_family(name)
    import reasoning_gym

    # Neighbouring seeds of reasoning-gym give shifted copies of one sequence.
    number = random.Random(seed).getrandbits(64)
    family = FAMILIES[name]
    return reasoning_gym.create_dataset(family.dataset, seed=number, **family.settings)
