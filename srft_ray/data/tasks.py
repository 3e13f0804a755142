"""Built-in tasks: reasoning-gym's generators and scorers, with worked solutions as demonstrations."""

import difflib
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from srft_ray.verify.verifier import Verdict, after_hashes

SPLITS = ("train", "heldout")
MAX_MISSES = 100_000


@dataclass(frozen=True)
class Family:
    """One reasoning-gym dataset, the settings it is used with, and how its entries are worked out."""

    dataset: str
    settings: dict[str, Any]
    solve: Callable[[dict], str]


def solve_sum(entry: dict) -> str:
    """Add the terms from left to right, one line each: `47 - 12 = 35`."""
    first, *rest = entry["metadata"]["expression"].split()
    steps = list(zip(rest[::2], map(int, rest[1::2]), strict=True))
    totals = list(itertools.accumulate((int(sign + str(term)) for sign, term in steps), initial=int(first)))
    lines = [
        f"{before} {sign} {term} = {after}"
        for (before, after), (sign, term) in zip(itertools.pairwise(totals), steps, strict=True)
    ]
    return _worked(lines, totals[-1])


def solve_product(entry: dict) -> str:
    """Multiply by the second factor's tens and ones apart, then add: `23 * 40 = 920`."""
    left, right = entry["metadata"]["expression"].split(" * ")
    places = [int(digit) * 10 ** (len(right) - 1 - i) for i, digit in enumerate(right) if digit != "0"] or [0]
    lines = [f"{left} * {place} = {int(left) * place}" for place in places]
    totals = list(itertools.accumulate(int(left) * place for place in places))
    lines += [f"{before} + {after - before} = {after}" for before, after in itertools.pairwise(totals)]
    return _worked(lines, totals[-1])


def solve_equation(entry: dict) -> str:
    """Move the constant of `a*x + b = c` to the right, then divide by the coefficient."""
    left, right = entry["metadata"]["equation"].split(" = ")
    terms = left.replace("- ", "-").replace("+ ", "").split()
    constant, unknown = sorted(terms, key=lambda term: term[-1].isalpha())
    head = unknown[:-1].rstrip("*")
    coefficient = int(head + "1" if head in ("", "-") else head)
    moved = int(right) - int(constant)
    lines = [
        f"{right} {'+' if constant[0] == '-' else '-'} {constant.lstrip('-')} = {moved}",
        f"{moved} / {coefficient} = {moved // coefficient}",
    ]
    return _worked(lines, moved // coefficient)


def _worked(lines: list[str], answer: int) -> str:
    return "\n".join([*lines, f"#### {answer}"])


def _arithmetic(terms: int, operators: str, min_digits: int) -> dict[str, Any]:
    return {
        "min_terms": terms,
        "max_terms": terms,
        "min_digits": min_digits,
        "max_digits": 2,
        "operators": list(operators),
        "allow_parentheses": False,
    }


FAMILIES: dict[str, Family] = {
    "sums": Family("basic_arithmetic", _arithmetic(3, "+-", 1), solve_sum),
    "products": Family("basic_arithmetic", _arithmetic(2, "*", 2), solve_product),
    "equations": Family(
        "simple_equations",
        {"min_terms": 2, "max_terms": 2, "max_value": 12, "operators_weights": [0.5, 0.5, 0.0]},
        solve_equation,
    ),
    "long_sums": Family("basic_arithmetic", _arithmetic(4, "+-", 1), solve_sum),
}


def generate(path: str, split: str, size: int, seed: int) -> Iterator[dict]:
    """Yield `size` rows with distinct questions, in turn from the families named in `path` ("sums+products").

    A question's split depends on its text alone, so `train` and `heldout` never meet, whatever seed and size.
    Raises ValueError for an unknown family or split, and when a family has too few distinct questions.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of the built-in tasks: use one of {', '.join(SPLITS)}")
    names = path.split("+")
    if len(set(names)) < len(names):
        raise ValueError(f"task path {path!r} names a family twice: name each family once")
    streams = [_rows(name, _dataset(name, f"{name} {seed}"), split) for name in names]
    return (next(stream) for stream in itertools.islice(itertools.cycle(streams), size))


def verify(response: str, reference: str, metadata: dict) -> Verdict:
    """reasoning-gym's own score of the answer after the last `#### `.

    The reward keeps partial credit, but only a full score is a match.
    """
    answer = after_hashes(response)
    if not answer:
        return Verdict("no_answer", 0.0, None)
    score = _dataset(metadata["family"], "score").score_answer(
        answer, {"answer": reference, "metadata": metadata["entry"]}
    )
    return Verdict("match" if score >= 1.0 else "mismatch", score, answer)


def warm_up() -> None:
    """Pay the second that importing reasoning-gym takes once, and not in each new worker's first item."""
    import reasoning_gym  # noqa: F401


@cache
def _dataset(name: str, seed: str) -> Any:
    if name not in FAMILIES:
        nearest = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown task family {name!r}: did you mean {nearest!r}? The families are {', '.join(FAMILIES)}"
        )
    import reasoning_gym

    number = random.Random(seed).getrandbits(64)  # neighbouring seeds of reasoning-gym give shifted copies
    return reasoning_gym.create_dataset(FAMILIES[name].dataset, seed=number, **FAMILIES[name].settings)


def _rows(name: str, dataset: Any, split: str) -> Iterator[dict]:
    seen, misses = set[str](), 0
    for entry in map(dataset.__getitem__, itertools.count()):
        question = entry["question"]
        misses = misses + 1 if question in seen or _split(question) != split else 0
        if misses == MAX_MISSES:
            raise ValueError(
                f"task family {name!r} has only {len(seen)} distinct {split} questions: ask for fewer"
            )
        if not misses:
            seen.add(question)
            scored = {key: value for key, value in entry["metadata"].items() if key != "difficulty"}
            yield {
                "prompt": question,
                "answer": entry["answer"],
                "demonstration": FAMILIES[name].solve(entry),
                "metadata": {"family": name, "entry": scored},
            }


def _split(question: str) -> str:
    return "train" if int(hashlib.sha256(question.encode()).hexdigest(), 16) % 10 else "heldout"
