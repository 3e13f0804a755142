"""Files of a run that grow by lines: metrics, evaluations, checkpoints and events.

Events say what happened to the run besides training. Light to import: small processes beside the run use it.
"""

import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from srft_ray.text import sanitize_text

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
CHECKPOINTS = "checkpoints.jsonl"
EVENTS = "events.jsonl"
TIMELINE = "timeline"  # folder of the files of `observe.timeline`
# Keys that every record of a file has. A line without them is not a record.
REQUIRED_KEYS = {
    METRICS: ("step",),
    EVALUATIONS: ("step", "set"),
    CHECKPOINTS: ("step", "path"),
    EVENTS: ("kind", "message"),
}
READ_BYTES = 2**16


class BadLine(ValueError):
    """A line that is not a record."""


def append_json(path: Path, record: dict[str, Any]) -> None:
    """Adds a line, or nothing: a write that fails half-way is undone."""
    line = (json.dumps(record) + "\n").encode()
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        # A process that died in the middle of its line must not spoil this one too.
        if size and _last_byte(file, size) != b"\n":
            line = b"\n" + line
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(size)
            raise


def _last_byte(file: BinaryIO, size: int) -> bytes:
    file.seek(size - 1)
    return file.read(1)


def write_whole(path: Path, content: str) -> None:
    """A crash leaves the file as it was or as it is to be."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(content)
    part.replace(path)


def record_event(run_dir: Path, kind: str, message: str, shown: bool = True) -> None:
    """Adds an event to `events.jsonl`, and to standard error if it is `shown`. On a full disk only standard
    error gets it."""
    message = sanitize_text(message)
    if shown:
        print(f"{kind}: {message}", file=sys.stderr, flush=True)
    event = {"time": round(time.time(), 3), "kind": kind, "message": message}
    with suppress(OSError):
        append_json(run_dir / EVENTS, event)


def record_checkpoint(run_dir: Path, step: int, path: str) -> None:
    """Adds a complete checkpoint to `checkpoints.jsonl`, unless it is the last one there."""
    last = last_record(run_dir / CHECKPOINTS)
    if last is None or last["step"] != step:
        record = {"step": step, "path": path, "time": round(time.time(), 3)}
        append_json(run_dir / CHECKPOINTS, record)


def parse_line(line: bytes, file_name: str) -> dict[str, Any]:
    """The record of a line.

    Raises:
        BadLine: it is no JSON object with the keys that every record of that file has.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise BadLine from None
    required = REQUIRED_KEYS.get(file_name, ())
    if not isinstance(record, dict) or not record.keys() >= set(required):
        raise BadLine
    if "step" in required and type(record["step"]) is not int:
        raise BadLine
    return record


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All records of a file that may be growing.

    A last line that is not whole yet is left out. Any other line that is not a record is left out too, and
    standard error says so.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(parse_line(line, path.name))
        except BadLine:
            if line.strip():
                print(f"journal: line {number} of {path} is not a record: it is left out", file=sys.stderr)
    return records


def last_record(path: Path) -> dict[str, Any] | None:
    """The last whole record of a file, read from its end; None if it has none."""
    return next((record for _, record in records_backwards(path)), None)


def end_of_steps(path: Path, step: int) -> int:
    """Bytes of the file up to the end of its last record of a step < `step`. Only the rest is read."""
    ends = (end for end, record in records_backwards(path) if record["step"] < step)
    return next(ends, 0)


def records_backwards(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(where its line ends, record), the last one first."""
    if not path.exists():
        return
    with path.open("rb") as file:
        lines = _lines_backwards(file)
        next(lines)  # what follows the last newline is no whole line
        for end, line in lines:
            with suppress(BadLine):
                yield end, parse_line(line, path.name)


def _lines_backwards(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(offset behind its newline, text) of each line, the last one first."""
    start = file.seek(0, os.SEEK_END)
    end = start + 1  # as if a newline followed
    first = b""
    while start > 0:
        length = min(READ_BYTES, start)
        start -= length
        file.seek(start)
        # The first line of what was read may begin further to the front.
        first, *lines = (file.read(length) + first).split(b"\n")
        for line in reversed(lines):
            yield end, line
            end -= len(line) + 1
    yield end, first
