"""Rows of published benchmarks in the formats in which they circulate, as problems."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srft_ray.config.formats import SUFFIXES
from srft_ray.data.records import read_records
from srft_ray.errors import UserError, require

LETTERS = "ABCDEFGHIJ"
QUESTION_FIELDS = (
    "question",
    "problem",
    "prompt",
    "Problem",
    "Question",
)
ANSWER_FIELDS = (
    "answer",
    "final_answer",
    "Answer",
    "answerKey",
    "reward_model.ground_truth",
    "ground_truth",
)
SOLUTION_FIELDS = ("solution", "Solution")
GPQA_ANSWERS = (
    "Correct Answer",
    "Incorrect Answer 1",
    "Incorrect Answer 2",
    "Incorrect Answer 3",
)
OPTION_LINE = re.compile(r"^\s*\(?([A-J1-9])[).:][ \t]*(.*\S)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Problem:
    """What is asked, and what is expected.

    Attributes:
        options: of a multiple choice, without letters; empty if the options are part of the question.
        answer: of a multiple choice the letter of the right option, in the order of `options`.
    """

    question: str
    answer: str
    options: tuple[str, ...] = ()


def read_problems(
    file: Path,
    is_choice: bool,
    source: str | None = None,
) -> Iterator[Problem]:
    """The problems of a file. A problem that is repeated, as in files made for avg@k, comes once.

    Args:
        source: only rows whose `data_source` is this.

    Raises:
        UserError: the file cannot be read, or a row lacks a field.
    """
    seen = set[Problem]()
    for where, record in _records(file):
        if source is not None and record.get("data_source") != source:
            continue
        problem = _choice(record, where) if is_choice else _open_question(record, where)
        if problem not in seen:
            seen.add(problem)
            yield problem


def _records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if file.suffix.lower() != ".csv":
        yield from read_records(file, SUFFIXES[file.suffix.lower()])
        return
    with file.open(newline="", encoding="utf-8-sig") as lines:
        for number, record in enumerate(csv.DictReader(lines), start=2):
            yield f"{file} line {number}", record


def _open_question(record: dict[str, Any], where: str) -> Problem:
    return Problem(_question(record, where), _open_answer(record, where))


def _open_answer(record: dict[str, Any], where: str) -> str:
    answer = _first(record, ANSWER_FIELDS)
    if answer is None:
        answer = _boxed(str(_first(record, SOLUTION_FIELDS) or ""))
    if isinstance(answer, list):  # OlympiadBench: one or several answers, each between dollar signs
        answer = ", ".join(str(part).strip().strip("$").strip() for part in answer)
    require(answer not in (None, ""), f"No answer in {where}; fields found: {', '.join(sorted(record))}.")
    if isinstance(answer, float) and answer.is_integer():  # AMC: 27.0
        answer = int(answer)
    text = str(answer).strip()
    boxed = _boxed(text) if text.startswith("\\boxed{") else None
    return text if boxed is None else boxed


def _choice(record: dict[str, Any], where: str) -> Problem:
    if GPQA_ANSWERS[0] in record:
        options = tuple(str(record[key]).strip() for key in GPQA_ANSWERS)
        return Problem(str(record["Question"]).strip(), "A", options)
    question, labels, options = _options(record, where)
    answer = _first(record, ANSWER_FIELDS)
    if answer is None and isinstance(record.get("answer_index"), int):
        answer = LETTERS[record["answer_index"]]
    require(answer is not None, f"No answer in {where}; fields found: {', '.join(sorted(record))}.")
    answer = str(answer).strip().strip("()")
    if not options:
        return Problem(question, answer)
    require(
        answer in labels and len(options) <= len(LETTERS),
        f"The answer {answer!r} in {where} is none of its options {', '.join(labels)}.",
    )
    return Problem(question, LETTERS[labels.index(answer)], options)


def _options(record: dict[str, Any], where: str) -> tuple[str, list[str], tuple[str, ...]]:
    """Question, labels and texts of the options; no options if they cannot be told from the question."""
    choices = record.get("choices", record.get("options"))
    if isinstance(record.get("question"), dict):  # ARC's own file
        choices = record["question"]["choices"]
        record = {"question": record["question"]["stem"]}
    question = _question(record, where)
    if isinstance(choices, dict):  # ARC on the hub
        labels = choices["label"]
        texts = choices["text"]
    elif not isinstance(choices, list) or not choices:
        return _written_options(question)
    elif isinstance(choices[0], dict):
        labels = [choice["label"] for choice in choices]
        texts = [choice["text"] for choice in choices]
    else:  # MMLU-Pro
        labels = LETTERS[: len(choices)]
        texts = choices
    written = [str(label) for label in labels]
    options = tuple(str(text).strip() for text in texts)
    return question, written, options


def _written_options(text: str) -> tuple[str, list[str], tuple[str, ...]]:
    """Options that are the last lines of the question, A) or (A) or A. and so on, in order."""
    lines = list(OPTION_LINE.finditer(text))
    if len(lines) < 2:
        return text, [], ()
    labels = [line[1] for line in lines]
    expected = LETTERS if labels[0] == "A" else "123456789"
    is_in_order = labels == list(expected[: len(labels)])
    # Nothing may stand between the options, or behind them.
    starts = [line.start() for line in lines[1:]]
    gaps = zip(lines, [*starts, len(text)], strict=True)
    is_list = all(not text[line.end() : start].strip() for line, start in gaps)
    if not (is_in_order and is_list):
        return text, [], ()
    question = text[: lines[0].start()].rstrip()
    options = tuple(line[2] for line in lines)
    return question, labels, options


def _question(record: dict[str, Any], where: str) -> str:
    found = _first(record, QUESTION_FIELDS)
    if isinstance(found, list) and found:  # messages
        found = found[-1].get("content")
    if not isinstance(found, str) or not found.strip():
        raise UserError(f"No question in {where}; fields found: {', '.join(sorted(record))}.")
    return found.strip()


def _first(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        value: Any = record
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def _boxed(solution: str) -> str | None:
    r"""What the last `\boxed{…}` of a worked solution holds."""
    start = solution.rfind("\\boxed{")
    depth = 0
    for place in range(start + len("\\boxed"), len(solution)) if start >= 0 else ():
        depth += {
            "{": 1,
            "}": -1,
        }.get(solution[place], 0)
        if depth == 0:
            return solution[start + len("\\boxed{") : place]
    return None
