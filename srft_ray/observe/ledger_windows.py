"""Merges the ledger's files of many steps: a folder with millions of files is slow on every file system.

A merged file becomes visible only after the files that it is made of are gone, so that no reader finds a row
twice. It is whole before the first of them is removed: after a crash in between, the next start goes on.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

FOLDER = "groups"
WINDOW_STEPS = 1000
MAX_BYTES = 2**30  # of the files of a window; larger ones are few enough as they are
ROW_GROUP_BYTES = 2**26

_OF_A_STEP = re.compile(r"step-(?P<step>\d+)-\d+\.(parquet|part)")
_MERGED = re.compile(r"\.?steps-(?P<first>\d+)-(?P<last>\d+)\.parquet")


def step_of(file: Path) -> int | None:
    """The step of a file of one step and rank; None for any other file."""
    found = _OF_A_STEP.fullmatch(file.name)
    return int(found["step"]) if found else None


def merge(run_dir: Path, step: int) -> None:
    """Merges the files of windows that end before `step`, which a checkpoint has made final."""
    _finish(run_dir)
    for first, files in _windows(run_dir).items():
        hidden = _hidden(run_dir, first)
        # A merged file whose last steps were removed is completed by the steps that were repeated.
        before = [_visible(hidden)] if _visible(hidden).exists() else []
        if first + WINDOW_STEPS <= step and _may_merge([*before, *files]):
            _write([*before, *files], hidden)
    _finish(run_dir)


def truncate(run_dir: Path, step: int) -> None:
    """Removes rows of steps >= `step` from merged files."""
    _finish(run_dir)
    for file in (run_dir / FOLDER).glob("steps-*.parquet"):
        found = _MERGED.fullmatch(file.name)
        if found is None or int(found["last"]) < step:
            continue
        if int(found["first"]) >= step:
            file.unlink()
            continue
        table = pq.read_table(file)
        part = file.with_suffix(".part")
        pq.write_table(table.filter(pc.less(table["step"], step)), part)
        part.replace(file)


def _windows(run_dir: Path) -> dict[int, list[Path]]:
    """Files of single steps by the first step of their window."""
    found: dict[int, list[Path]] = defaultdict(list)
    for file in sorted((run_dir / FOLDER).glob("step-*.parquet")):
        step = step_of(file)
        if step is not None:
            found[step - step % WINDOW_STEPS].append(file)
    return found


def _may_merge(files: Sequence[Path]) -> bool:
    """Whether the files are small and have the same columns; an earlier release may have had others."""
    if sum(file.stat().st_size for file in files) > MAX_BYTES:
        return False
    return len({pq.read_schema(file).remove_metadata() for file in files}) == 1


def _hidden(run_dir: Path, first: int) -> Path:
    """Readers of Parquet folders and shells pass over names that begin with a full stop."""
    last = first + WINDOW_STEPS - 1
    return run_dir / FOLDER / f".steps-{first:06d}-{last:06d}.parquet"


def _visible(hidden: Path) -> Path:
    return hidden.with_name(hidden.name.removeprefix("."))


def _write(files: Iterable[Path], target: Path) -> None:
    """Writes the rows of all files, in their order, to one, which is complete or absent."""
    part = target.with_suffix(".part")
    writer: pq.ParquetWriter | None = None
    waiting: list[pa.Table] = []
    for file in files:
        waiting.append(pq.read_table(file).replace_schema_metadata(None))
        writer = writer or pq.ParquetWriter(part, waiting[0].schema)
        if sum(table.nbytes for table in waiting) > ROW_GROUP_BYTES:
            writer.write_table(pa.concat_tables(waiting))
            waiting = []
    if waiting:
        writer.write_table(pa.concat_tables(waiting))
    writer.close()
    part.replace(target)


def _finish(run_dir: Path) -> None:
    """Makes whole merged files visible, after the files that they are made of are gone."""
    for hidden in (run_dir / FOLDER).glob(".steps-*.parquet"):
        found = _MERGED.fullmatch(hidden.name)
        for file in _windows(run_dir).get(int(found["first"]), []):
            file.unlink()
        hidden.replace(_visible(hidden))
