"""Reads demonstrations and prompts from files: JSON, JSONL, Parquet, Hugging Face datasets on disk, built-in tasks."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from srft_ray.config.formats import data_format
from srft_ray.config.schema import DataSection
from srft_ray.data import tasks
from srft_ray.errors import UserError, first_line, require

USUAL_FIELDS = {
    "prompt": ("prompt", "question", "problem"),
    "answer": ("answer", "reference", "ground_truth"),
    "demonstration": ("demonstration", "demonstrations", "solution", "response"),
}
CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")


@dataclass
class Row:
    """One prompt, its reference answer, and the demonstrations for it (none, one or several)."""

    prompt: str | list[dict[str, str]]
    reference: str
    demonstrations: list[str]
    metadata: dict[str, Any] = field(default_factory=dict)


def read_rows(section: DataSection, seed: int = 0) -> Iterator[Row]:
    """Rows in the order of the source. UserError, with file and line: it is missing, empty, not parseable, or lacks a field."""
    if data_format(section) == "tasks":
        try:
            for record in tasks.generate(section.path, section.split, section.size, seed):
                yield Row(record["prompt"], record["answer"], [record["demonstration"]], record["metadata"])
        except ValueError as error:
            raise UserError(f"data.path '{section.path}' with data.format=tasks: {error}") from error
        return
    path, empty = Path(section.path).expanduser(), True
    require(
        path.exists(),
        f"data.path {path} does not exist; pass a JSONL, JSON or Parquet file, or a dataset directory.",
    )
    for where, record in _records(path, data_format(section)):
        empty = False
        yield to_row(record, section, where)
    require(not empty, f"data.path {path} is empty: it holds no row.")


def to_row(record: dict[str, Any], section: DataSection, where: str) -> Row:
    """Maps a record's fields to a Row. GSM8K's `answer` (a worked solution that ends in `#### 72`) is both."""
    prompt = _field(record, "prompt", section.prompt_field, where)
    if not prompt or not (isinstance(prompt, str) or _is_messages(prompt)):
        raise UserError(
            f"The prompt in {where} must be a text or a list of messages that is not empty, not {prompt!r}."
        )
    answer = _field(record, "answer", section.answer_field, where)
    given = _field(record, "demonstration", section.demonstration_field, where)
    several = isinstance(given, list) and not (given and isinstance(given[0], dict) and "role" in given[0])
    demonstrations = [_content(d, where) for d in (given if several else [given]) if d]
    reference = "" if answer is None else str(answer)
    if "\n#### " in reference:
        solution = CALCULATOR_NOTE.sub("", reference)
        reference = solution.rsplit("\n#### ", 1)[1].strip()
        demonstrations = demonstrations or [solution]
    metadata = record.get("metadata")
    return Row(prompt, reference, demonstrations, metadata if isinstance(metadata, dict) else {})


def _field(record: dict[str, Any], role: str, name: str | None, where: str) -> Any:
    """The field `name`, which may be dotted, or the first of the role's usual ones; only a prompt and what is named must be there."""
    names = (name,) if name else USUAL_FIELDS[role]
    for candidate in names:
        value: Any = record
        for part in candidate.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    if not name and role != "prompt":
        return None
    looked = " or ".join(f"'{n}'" for n in names)
    raise UserError(
        f"No {role} field {looked} in {where}; fields found: {', '.join(sorted(record))}. Set data.{role}_field."
    )


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(m, dict) and "role" in m and isinstance(m.get("content"), str) for m in value
    )


def _content(demonstration: Any, where: str) -> str:
    """The text of a demonstration: itself, or the last message of a conversation."""
    if isinstance(demonstration, list) and demonstration:
        demonstration = demonstration[-1]
    if isinstance(demonstration, dict):
        demonstration = demonstration.get("content")
    if not isinstance(demonstration, str):
        raise UserError(
            f"A demonstration in {where} must be a text or messages, not {type(demonstration).__name__}."
        )
    return demonstration


def _records(path: Path, format: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records with their places, such as `data.jsonl line 3`."""
    kind, unit, read = _READERS[format]
    for part in _dataset_files(path) if format == "hf" else sorted(path.glob("*.parquet")) or [path]:
        try:
            for number, record in read(part):
                if not isinstance(record, dict):
                    raise UserError(
                        f"{part} {unit} {number} must be a JSON object with named fields, not a {type(record).__name__}."
                    )
                yield f"{part} {unit} {number}", record
        except (pa.ArrowException, OSError) as error:  # damaged pages are an OSError
            raise UserError(f"{part} is not a readable {kind} file: {first_line(error)}.") from error


def _dataset_files(path: Path) -> list[Path]:
    """Those of `Dataset.save_to_disk` that state.json names, since `Dataset.map` leaves its caches beside them; of a `DatasetDict` its `train`."""
    if (path / "dataset_dict.json").exists():
        splits = _parse((path / "dataset_dict.json").read_bytes(), str(path / "dataset_dict.json"))["splits"]
        require(
            "train" in splits,
            f"{path} holds the splits {', '.join(splits)}: set data.path to one of them, such as {path / splits[0]}.",
        )
        path = path / "train"
    files, state = sorted(path.glob("*.arrow")), path / "state.json"
    if state.is_file():
        files = [
            path / part["filename"] for part in _parse(state.read_bytes(), str(state)).get("_data_files", [])
        ]
    require(
        bool(files),
        f"{path} is no dataset on disk: it holds no .arrow file. Write one with Dataset.save_to_disk, or pass Parquet or JSONL.",
    )
    return files


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _parse(line, f"{path} line {number}")


def _read_json(path: Path) -> Iterable[tuple[int, Any]]:
    text = path.read_bytes()
    records = _parse(text, str(path)) if text.strip() else []
    require(
        isinstance(records, list),
        f"{path} must hold a JSON list of rows, not a {type(records).__name__}; for one row a line use "
        "data.format=jsonl.",
    )
    return enumerate(records, start=1)


def _read_batches(batches: Iterable[pa.RecordBatch]) -> Iterable[tuple[int, Any]]:
    return enumerate((record for batch in batches for record in batch.to_pylist()), start=1)


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    except json.JSONDecodeError as error:
        line = f" line {error.lineno}" if " line " not in where else ""
        raise UserError(f"{where}{line} is not valid JSON: {error.msg} at column {error.colno}.") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise UserError(f"{where} is not valid JSON: {error}.") from error


_READERS = {
    "jsonl": ("JSONL", "line", _read_jsonl),
    "json": ("JSON", "row", _read_json),
    "parquet": (
        "Parquet",
        "row",
        lambda path: _read_batches(pq.ParquetFile(path).iter_batches(batch_size=256)),
    ),
    "hf": ("Arrow", "row", lambda path: _read_batches(pa.ipc.open_stream(pa.memory_map(str(path))))),
}
