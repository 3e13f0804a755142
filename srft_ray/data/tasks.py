"""Rows of the built-in tasks, with demonstrations: reasoning-gym's questions, and programs to write."""

import hashlib
import itertools
from collections.abc import Callable, Iterator

from srft_ray.data.program_tasks import program_entries
from srft_ray.tasks import PROGRAM_FAMILIES, check_family, task_dataset

SPLITS = ("train", "heldout")
MAX_MISSES = 100_000


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


SOLVE: dict[str, Callable[[dict], str]] = {
    "sums": solve_sum,
    "products": solve_product,
    "equations": solve_equation,
    "long_sums": solve_sum,
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
    for name in names:
        check_family(name)
    streams = [_rows(name, _entries(name, f"{name} {seed}"), split) for name in names]
    return (next(stream) for stream in itertools.islice(itertools.cycle(streams), size))


def _entries(name: str, seed: str) -> Iterator[dict]:
    """Endless entries of a family; those of programs have their demonstration already."""
    if name in PROGRAM_FAMILIES:
        return program_entries(seed)
    entries = map(task_dataset(name, seed).__getitem__, itertools.count())
    return ({**entry, "demonstration": SOLVE[name](entry)} for entry in entries)


def _rows(name: str, entries: Iterator[dict], split: str) -> Iterator[dict]:
    seen, misses = set[str](), 0
    for entry in entries:
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
                "demonstration": entry["demonstration"],
                "metadata": {"family": name, "entry": scored},
            }


def _split(question: str) -> str:
    return "train" if int(hashlib.sha256(question.encode()).hexdigest(), 16) % 10 else "heldout"
