"""Small Python functions to write: a question, a program that answers it, and tests."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

TESTS = 5  # of each question
LONGEST = 8  # values in a list of a test
LARGEST = 30  # value, and smallest with a minus sign


@dataclass(frozen=True)
class Part:
    """A part of a function on a list of integers.

    Attributes:
        words: what the question says; {k} stands for a number.
        code: the same as an expression, of `value` or `values`.
        apply: the same, of a value (or of the list) and the number.
    """

    words: str
    code: str
    apply: Callable


FILTERS = (
    Part("the even values", "value % 2 == 0", lambda value, k: value % 2 == 0),
    Part("the odd values", "value % 2 == 1", lambda value, k: value % 2 == 1),
    Part("the values above {k}", "value > {k}", lambda value, k: value > k),
    Part("the values below {k}", "value < {k}", lambda value, k: value < k),
    Part("the values divisible by {k}", "value % {k} == 0", lambda value, k: value % k == 0),
    Part("the values other than {k}", "value != {k}", lambda value, k: value != k),
)
MAPS = (
    Part("squared", "value * value", lambda value, k: value * value),
    Part("with the opposite sign", "-value", lambda value, k: -value),
    Part("without their signs", "abs(value)", lambda value, k: abs(value)),
    Part("multiplied by {k}", "value * {k}", lambda value, k: value * k),
    Part("increased by {k}", "value + {k}", lambda value, k: value + k),
    Part("modulo {k}", "value % {k}", lambda value, k: value % k),
)
RESULTS = (
    Part("their sum", "sum(values)", lambda values, k: sum(values)),
    Part("how many different ones there are", "len(set(values))", lambda values, k: len(set(values))),
    Part("the largest, or {k} if there is none", "max(values, default={k})", lambda v, k: max(v, default=k)),
    Part("them in ascending order", "sorted(values)", lambda values, k: sorted(values)),
    Part("them in reverse order", "values[::-1]", lambda values, k: values[::-1]),
    Part("the first {k} of them", "values[:{k}]", lambda values, k: values[:k]),
)


def program_entries(seed: str) -> Iterator[dict]:
    """Endless entries with `question`, `answer` (the tests as JSON), `demonstration` and `metadata`."""
    rng = random.Random(seed)
    while True:
        parts = [rng.choice(parts) for parts in (FILTERS, MAPS, RESULTS)]
        yield _entry(parts, [rng.randrange(2, 10) for _ in parts])


def _entry(parts: list[Part], numbers: list[int]) -> dict:
    chosen, changed, result = (
        part.words.format(k=number) for part, number in zip(parts, numbers, strict=True)
    )
    question = (
        "Write a Python function `solve(values)`. `values` is a list of integers. Take "
        f"{chosen}, {changed}; the function returns {result}. Answer with one block of code between "
        "```python and ```."
    )
    return {
        "question": question,
        "answer": json.dumps(_tests(question, parts, numbers)),
        "demonstration": _program(parts, numbers),
        "metadata": {},
    }


def _program(parts: list[Part], numbers: list[int]) -> str:
    condition, change, result = (
        part.code.format(k=number) for part, number in zip(parts, numbers, strict=True)
    )
    lines = [
        "```python",
        "def solve(values):",
        f"    values = [value for value in values if {condition}]",
        f"    values = [{change} for value in values]",
        f"    return {result}",
        "```",
    ]
    return "\n".join(lines)


def _tests(question: str, parts: list[Part], numbers: list[int]) -> dict:
    """The tests of a question depend on its text alone; the first has an empty list."""
    rng = random.Random(question)
    inputs: list[list[int]] = [[]]
    while len(inputs) < TESTS:
        inputs.append([rng.randint(-LARGEST, LARGEST) for _ in range(rng.randint(1, LONGEST))])
    outputs = [_solve(values, parts, numbers) for values in inputs]
    return {"fn_name": "solve", "inputs": [[values] for values in inputs], "outputs": outputs}


def _solve(values: list[int], parts: list[Part], numbers: list[int]) -> object:
    choose, change, result = parts
    chosen = [value for value in values if choose.apply(value, numbers[0])]
    changed = [change.apply(value, numbers[1]) for value in chosen]
    return result.apply(changed, numbers[2])
