"""Rows of prompts and demonstrations: which field of a record, or of a built-in task, is what."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srft_ray.config.formats import data_format
from srft_ray.config.schema import DataSection
from srft_ray.data import tasks
from srft_ray.data.records import read_records
from srft_ray.errors import UserError, require

USUAL_FIELDS = {
    "prompt": ("prompt", "question", "problem"),
    "answer": ("answer", "reference", "ground_truth", "reward_model.ground_truth"),
    "demonstration": ("demonstration", "demonstrations", "solution", "response", "target"),
}
CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")
ANSWER_MARK = "\n#### "  # GSM8K: what follows it is the answer, what comes before it is the worked solution


@dataclass
class Row:
    """One prompt, its reference answer, and the demonstrations for it (none, one or several).

    Attributes:
        prompt: a text, or the messages of a conversation (`role`, `content`).
        reference: what a verifier compares answers with; empty if the data has none.
        metadata: passed on to the verifier as it is.
    """

    prompt: str | list[dict[str, str]]
    reference: str
    demonstrations: list[str]
    metadata: dict[str, Any] = field(default_factory=dict)


def read_rows(section: DataSection, seed: int = 0, key: str = "data") -> Iterator[Row]:
    """Rows in the order of the source; `seed` is for generated tasks, `key` the place of the section in the
    config, for messages.

    Raises:
        UserError: the source is missing, empty or not parseable, or a record lacks a field (file and line).
    """
    format = data_format(section)
    if format == "tasks":
        yield from _generated_rows(section, seed, key)
        return
    path = Path(section.path).expanduser().absolute()
    require(
        path.exists(),
        f"{key}.path {path} does not exist; pass a JSONL, JSON or Parquet file, or a dataset directory.",
    )
    empty = True
    for where, record in read_records(path, format):
        empty = False
        yield to_row(record, section, where, key)
    require(not empty, f"{key}.path {path} is empty: it holds no row.")


def _generated_rows(section: DataSection, seed: int, key: str) -> Iterator[Row]:
    try:
        for record in tasks.generate(section.path, section.split, section.size, seed):
            yield Row(record["prompt"], record["answer"], [record["demonstration"]], record["metadata"])
    except ValueError as error:
        raise UserError(f"{key}.path '{section.path}' with {key}.format=tasks: {error}") from error


def to_row(record: dict[str, Any], section: DataSection, where: str, key: str = "data") -> Row:
    """Maps a record's fields to a Row.

    The `answer` of GSM8K (a worked solution that ends in `#### 72`) is both demonstration and reference.

    Args:
        where: the record's place, for messages.
        key: the section's place in the config, for messages.

    Raises:
        UserError: a field is missing, or holds something else than text or messages.
    """
    prompt = _field(record, "prompt", section.prompt_field, where, key)
    if not prompt or not (isinstance(prompt, str) or _is_messages(prompt)):
        raise UserError(
            f"The prompt in {where} must be a text or a list of messages that is not empty, not {prompt!r}."
        )
    answer = _field(record, "answer", section.answer_field, where, key)
    reference = "" if answer is None else str(answer)
    given = _field(record, "demonstration", section.demonstration_field, where, key)
    demonstrations = _demonstrations(given, where)
    if ANSWER_MARK in reference:
        solution = CALCULATOR_NOTE.sub("", reference)
        reference = solution.rsplit(ANSWER_MARK, 1)[1].strip()
        demonstrations = demonstrations or [solution]
    metadata = record.get("metadata")
    return Row(prompt, reference, demonstrations, metadata if isinstance(metadata, dict) else {})


def _field(record: dict[str, Any], role: str, name: str | None, where: str, key: str) -> Any:
    """The field `name`, which may be dotted, or the first of the role's usual ones.

    A prompt must be there, and an answer whose field is named; None stands for any other that is missing.
    """
    names = (name,) if name else USUAL_FIELDS[role]
    for candidate in names:
        value = _dotted(record, candidate)
        if value is not None:
            return value
    if role == "demonstration" or (role == "answer" and not name):
        return None
    looked = " or ".join(f"'{candidate}'" for candidate in names)
    found = ", ".join(sorted(name for name, value in record.items() if value is not None))
    cure = f"Correct {key}.{role}_field or the row." if name else f"Set {key}.{role}_field."
    raise UserError(f"No {role} field {looked} in {where}; fields found: {found}. {cure}")


def _dotted(record: dict[str, Any], name: str) -> Any:
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and all(_is_message(message) for message in value)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value and isinstance(value.get("content"), str)


def _demonstrations(given: Any, where: str) -> list[str]:
    """Texts of one demonstration or of a list of them; one may be a conversation, which is a list too."""
    is_conversation = isinstance(given, list) and given and isinstance(given[0], dict) and "role" in given[0]
    several = given if isinstance(given, list) and not is_conversation else [given]
    return [_content(demonstration, where) for demonstration in several if demonstration]


def _content(demonstration: Any, where: str) -> str:
    """The text of a demonstration: itself, or the last message of a conversation."""
    if isinstance(demonstration, list) and demonstration:
        demonstration = demonstration[-1]
    if isinstance(demonstration, dict):
        demonstration = demonstration.get("content")
    if not isinstance(demonstration, str):
        kind = type(demonstration).__name__
        raise UserError(f"A demonstration in {where} must be a text or messages, not {kind}.")
    return demonstration
