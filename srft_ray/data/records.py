"""Records from files: JSON, JSONL, Parquet, and Hugging Face datasets on disk. Each comes with its place."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from srft_ray.errors import UserError, first_line, require

PARQUET_BATCH = 256  # rows in memory at a time


@dataclass(frozen=True)
class Format:
    """A file format: its name and its unit in messages, and what reads (number, record) from one file."""

    name: str
    unit: str
    read: Callable[[Path], Iterable[tuple[int, Any]]]


def read_records(path: Path, format: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) in the order of the source; a place is such as `data.jsonl line 3`.

    Args:
        format: jsonl, json, parquet or hf.

    Raises:
        UserError: a file cannot be read, or a record is no object with named fields.
    """
    reader = FORMATS[format]
    for file in _files(path, format):
        try:
            for number, record in reader.read(file):
                where = f"{file} {reader.unit} {number}"
                if not isinstance(record, dict):
                    kind = type(record).__name__
                    raise UserError(f"{where} must be a JSON object with named fields, not a {kind}.")
                yield where, record
        # Damaged pages are an OSError, damaged text in them is found when it becomes a Python string.
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} is not a readable {reader.name} file: {first_line(error)}.") from error


def _files(path: Path, format: str) -> list[Path]:
    if format == "hf":
        return _dataset_files(path)
    return sorted(path.glob("*.parquet")) or [path]


def _dataset_files(path: Path) -> list[Path]:
    """The files of `Dataset.save_to_disk`; of a `DatasetDict` those of its split `train`."""
    splits_file = path / "dataset_dict.json"
    if splits_file.exists():
        splits = _parse(splits_file.read_bytes(), str(splits_file))["splits"]
        require(
            "train" in splits,
            f"{path} holds the splits {', '.join(splits)}: set data.path to one of them, such as "
            f"{path / splits[0]}.",
        )
        path = path / "train"
    files = sorted(path.glob("*.arrow"))
    state = path / "state.json"
    if state.is_file():
        # Only the files that it names are data: `Dataset.map` leaves its caches beside them.
        named = _parse(state.read_bytes(), str(state)).get("_data_files", [])
        files = [path / part["filename"] for part in named]
    require(
        bool(files),
        f"{path} is no dataset on disk: it holds no .arrow file. Write one with Dataset.save_to_disk, or "
        "pass Parquet or JSONL.",
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


def _read_parquet(path: Path) -> Iterable[tuple[int, Any]]:
    return _read_batches(pq.ParquetFile(path).iter_batches(batch_size=PARQUET_BATCH))


def _read_arrow(path: Path) -> Iterable[tuple[int, Any]]:
    return _read_batches(pa.ipc.open_stream(pa.memory_map(str(path))))


def _read_batches(batches: Iterable[pa.RecordBatch]) -> Iterable[tuple[int, Any]]:
    return enumerate((record for batch in batches for record in batch.to_pylist()), start=1)


def _parse(text: bytes, where: str) -> Any:
    """The JSON value of `text`. Raises UserError with the place of what is wrong."""
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    except json.JSONDecodeError as error:
        line = f" line {error.lineno}" if " line " not in where else ""
        raise UserError(f"{where}{line} is not valid JSON: {error.msg} at column {error.colno}.") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise UserError(f"{where} is not valid JSON: {error}.") from error


FORMATS = {
    "jsonl": Format("JSONL", "line", _read_jsonl),
    "json": Format("JSON", "row", _read_json),
    "parquet": Format("Parquet", "row", _read_parquet),
    "hf": Format("Arrow", "row", _read_arrow),
}
