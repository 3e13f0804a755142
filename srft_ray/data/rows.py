"""Reads demonstrations and prompts from files: JSON, JSONL, Parquet, Hugging Face datasets on disk, built-in tasks."""
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srft_ray.config import DataSection
from srft_ray.errors import UserError

PROMPT_FIELDS = ("prompt", "question", "problem")
ANSWER_FIELDS = ("answer", "reference", "ground_truth")
DEMONSTRATION_FIELDS = ("demonstration", "demonstrations", "solution", "response")
CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")


@dataclass
class Row:
    """One prompt, its reference answer, and the demonstrations for it (none, one or several)."""
    prompt: str | list[dict[str, str]]
    reference: str
    demonstrations: list[str]
    metadata: dict[str, Any] = field(default_factory=dict)


def read_rows(section: DataSection, seed: int = 0) -> Iterator[Row]:
    """Rows in the order of the source.

    Raises:
        UserError: naming file and line, where a source is missing, empty, not parseable, or lacks a field.
    """
    if data_format(section) == "tasks":
        yield from _task_rows(section, seed)
        return
    path, empty = Path(section.path).expanduser(), True
    if not path.exists():
        raise UserError(f"data.path {path} does not exist; pass a JSONL, JSON or Parquet file, or a dataset directory.")
    for where, record in _READERS[data_format(section)](path):
        empty = False
        yield to_row(record, section, where)
    if empty:
        raise UserError(f"data.path {path} is empty: it holds no row.")


def data_format(section: DataSection) -> str:
    if section.format != "auto":
        return section.format
    path = Path(section.path).expanduser()
    if path.is_dir():
        return "parquet" if any(path.glob("*.parquet")) else "hf"
    known = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".pq": "parquet"}
    if path.suffix.lower() not in known:
        raise UserError(f"The format of data.path {path} cannot be told from its name: set data.format to jsonl, json, parquet, hf or tasks.")
    return known[path.suffix.lower()]


def to_row(record: dict[str, Any], section: DataSection, where: str) -> Row:
    """Maps a record's fields to a Row. GSM8K's `answer` (a worked solution that ends in `#### 72`) is both."""
    prompt = _field(record, section.prompt_field, PROMPT_FIELDS, where, "prompt")
    if not prompt or not (isinstance(prompt, str) or _is_messages(prompt)):
        raise UserError(f"The prompt in {where} must be a text or a list of messages that is not empty, not {prompt!r}.")
    answer = _field(record, section.answer_field, ANSWER_FIELDS, where, "answer", required=section.answer_field is not None)
    given = _field(record, section.demonstration_field, DEMONSTRATION_FIELDS, where, "demonstration",
                   required=section.demonstration_field is not None)
    demonstrations = [_content(d, where) for d in (given if _is_several(given) else [given]) if d]
    reference = "" if answer is None else str(answer)
    if "\n#### " in reference:
        solution = CALCULATOR_NOTE.sub("", reference)
        reference = solution.rsplit("\n#### ", 1)[1].strip()
        demonstrations = demonstrations or [solution]
    metadata = record.get("metadata")
    return Row(prompt, reference, demonstrations, metadata if isinstance(metadata, dict) else {})


def _field(record: dict[str, Any], name: str | None, usual: tuple[str, ...], where: str, role: str, required: bool | None = None) -> Any:
    for candidate in (name,) if name else usual:
        value: Any = record
        for part in candidate.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    if required is False or (required is None and role != "prompt"):
        return None
    looked = f"'{name}'" if name else " or ".join(f"'{u}'" for u in usual)
    raise UserError(f"No {role} field {looked} in {where}; fields found: {', '.join(sorted(record))}. Set data.{role}_field.")


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(m, dict) and "role" in m and isinstance(m.get("content"), str) for m in value)


def _is_several(value: Any) -> bool:
    return isinstance(value, list) and not (value and isinstance(value[0], dict) and "role" in value[0])


def _content(demonstration: Any, where: str) -> str:
    """The text of a demonstration: itself, or the last message of a conversation."""
    if isinstance(demonstration, list) and demonstration:
        demonstration = demonstration[-1]
    if isinstance(demonstration, dict):
        demonstration = demonstration.get("content")
    if not isinstance(demonstration, str):
        raise UserError(f"A demonstration in {where} must be a text or messages, not {type(demonstration).__name__}.")
    return demonstration


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    import pyarrow as pa
    try:
        yield
    except (pa.ArrowException, OSError) as error:  # damaged pages are an OSError
        raise UserError(f"{path} is not a readable {kind} file: {str(error).splitlines()[0]}.") from error


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with _readable(path, "JSONL"), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path} line {number}", _record(_parse(line, f"{path} line {number}"), f"{path} line {number}")


def _read_json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with _readable(path, "JSON"):
        text = path.read_bytes()
    if not text.strip():
        return
    records = _parse(text, str(path))
    if not isinstance(records, list):
        raise UserError(f"{path} must hold a JSON list of rows, not a {type(records).__name__}; for one row a line use data.format=jsonl.")
    for number, record in enumerate(records, start=1):
        yield f"{path} row {number}", _record(record, f"{path} row {number}")


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


def _record(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a JSON object with named fields, not a {type(value).__name__}.")
    return value


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet as pq
    for part in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        with _readable(part, "Parquet"):
            number, file = 0, pq.ParquetFile(part)
            for batch in file.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{part} row {number}", record


def _read_hf(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A directory of `Dataset.save_to_disk`; of a `DatasetDict` the split `train`."""
    import pyarrow as pa
    if (path / "dataset_dict.json").exists():
        splits = _parse((path / "dataset_dict.json").read_bytes(), str(path / "dataset_dict.json"))["splits"]
        if "train" not in splits:
            raise UserError(f"{path} holds the splits {', '.join(splits)}: set data.path to one of them, such as {path / splits[0]}.")
        path = path / "train"
    files = _hf_files(path)
    if not files:
        raise UserError(f"{path} is no dataset on disk: it holds no .arrow file. Write one with Dataset.save_to_disk, or pass a Parquet or "
                        "JSONL file.")
    for part in files:
        with _readable(part, "Arrow"):
            number = 0
            for batch in pa.ipc.open_stream(pa.memory_map(str(part))):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{part} row {number}", record


def _hf_files(path: Path) -> list[Path]:
    """Those that state.json names: `Dataset.map` leaves its caches beside them."""
    state = path / "state.json"
    if not state.is_file():
        return sorted(path.glob("*.arrow")) if path.is_dir() else []
    return [path / part["filename"] for part in _parse(state.read_bytes(), str(state)).get("_data_files", [])]


def _task_rows(section: DataSection, seed: int) -> Iterator[Row]:
    from srft_ray.data import tasks
    try:
        for record in tasks.generate(section.path, section.split, section.size, seed):
            yield Row(record["prompt"], record["answer"], [record["demonstration"]], record["metadata"])
    except ValueError as error:
        raise UserError(f"data.path '{section.path}' with data.format=tasks: {error}") from error


_READERS = {"jsonl": _read_jsonl, "json": _read_json, "parquet": _read_parquet, "hf": _read_hf}
