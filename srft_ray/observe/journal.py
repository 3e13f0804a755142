"""What a run writes line by line: metrics, evaluations, and events, which say what happened to it besides training."""

import errno
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


def append_json(path: Path, record: dict[str, Any]) -> None:
    """Adds a line, or nothing: a write that fails half-way is undone."""
    with path.open("ab", buffering=0) as file:
        size, line = file.tell(), (json.dumps(record) + "\n").encode()
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(size)
            raise


def write_whole(path: Path, content: str) -> None:
    """A crash leaves the file as it was or as it is to be."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(content)
    part.replace(path)


def record_event(run_dir: Path, kind: str, message: str) -> None:
    """Says what happened to the run besides training, to `events.jsonl` and standard error; a full disk loses the first only."""
    print(f"{kind}: {message}", file=sys.stderr, flush=True)
    with suppress(OSError):
        append_json(
            run_dir / "events.jsonl", {"time": round(time.time(), 3), "kind": kind, "message": message}
        )


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a file that may be growing: a last line that is not whole yet is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def truncate(run_dir: Path, step: int) -> None:
    """Removes metrics, evaluations and ledger rows of steps >= `step`, which are about to be repeated."""
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        path = run_dir / name
        if path.exists():
            kept = [record for record in read_json_lines(path) if record["step"] < step]
            write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))
    for file in (run_dir / "groups").glob("step-*"):
        if int(file.name.split("-")[1]) >= step:
            file.unlink()
