"""Prompts of benchmarks: instructions, and options in an order that a seed decides."""

import hashlib
import random
from typing import Any

from srft_ray.data.benchmark_rows import LETTERS, Problem
from srft_ray.data.benchmarks import Found

MATH_INSTRUCTION = "Present the answer in LaTeX format: \\boxed{Your answer}"
CHOICE_INSTRUCTION = (
    "Answer the following multiple choice question. The last line of your response should be of the "
    "following format: 'Answer: $LETTER' (without quotes) where LETTER is one of {letters}. Think step by "
    "step before answering."
)


def prompt_rows(
    found: Found,
    samples: int,
    seed: int,
    bare: bool = False,
) -> list[dict[str, Any]]:
    """The rows of an evaluation set, in the format of `data.path`.

    Each sample of a multiple choice has its own row, with the options in an order of its own; `metadata` says
    which prompt and sample it is. Of other sets each prompt has one row, which is sampled several times.

    Args:
        bare: without instructions.
    """
    if not found.benchmark.is_choice:
        return [_open_row(problem, bare) for problem in found.problems]
    return [
        _choice_row(
            problem,
            found.name,
            number,
            sample,
            seed,
            bare,
        )
        for number, problem in enumerate(found.problems)
        for sample in range(samples)
    ]


def rows_per_prompt(found: Found, samples: int) -> int:
    return samples if found.benchmark.is_choice else 1


def _open_row(problem: Problem, bare: bool) -> dict[str, Any]:
    text = problem.question if bare else f"{problem.question}\n\n{MATH_INSTRUCTION}"
    return {
        "prompt": text,
        "answer": problem.answer,
    }


def _choice_row(
    problem: Problem, name: str, number: int, sample: int, seed: int, bare: bool
) -> dict[str, Any]:
    options, answer = shuffled_options(problem, f"{seed}/{name}/{number}/{sample}")
    letters = LETTERS[: len(options)] or "ABCDE"
    written = "\n".join(f"{letter}) {text}" for letter, text in zip(letters, options, strict=False))
    question = f"{problem.question}\n\n{written}" if options else problem.question
    instruction = CHOICE_INSTRUCTION.format(letters=letters)
    return {
        "prompt": question if bare else f"{instruction}\n\n{question}",
        "answer": answer,
        "metadata": {
            "letters": letters,
            "evaluation": {
                "prompt_id": number,
                "sample": sample,
            },
        },
    }


def shuffled_options(problem: Problem, key: str) -> tuple[list[str], str]:
    """The options in the order that the key decides, and the letter of the right one there."""
    if not problem.options:
        return [], problem.answer
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    order = list(range(len(problem.options)))
    random.Random(seed).shuffle(order)
    right = LETTERS.index(problem.answer)
    return [problem.options[place] for place in order], LETTERS[order.index(right)]
