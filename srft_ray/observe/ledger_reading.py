"""Reads the ledger of a run, step by step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from srft_ray.observe.ledger_windows import FOLDER, step_of


def files_by_step(run_dir: Path) -> dict[int, list[Path]]:
    """The files that hold rows of each step. Of merged files the column `step` is read."""
    found: dict[int, list[Path]] = {}
    for file in sorted((run_dir / FOLDER).glob("[!.]*.parquet")):  # not one that a merge is writing
        step = step_of(file)
        steps = [step] if step is not None else _steps_in(file)
        for one in steps:
            found.setdefault(one, []).append(file)
    return found


def read_step(
    files: Sequence[Path],
    step: int,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """The rows of a step, from the files that `files_by_step` names."""
    wanted = columns and list(columns)
    tables = [
        # Without a partitioning, so that a folder named `a=b` adds no column.
        pq.read_table(
            file,
            columns=wanted,
            filters=[("step", "=", step)],
            partitioning=None,
        )
        for file in files
    ]
    return pa.concat_tables(tables, promote_options="default")


def read_rows(
    files: Sequence[Path],
    step: int,
    most_groups: int,
) -> list[dict[str, Any]]:
    """The rows of the first groups of a step by number, ordered by group and sample."""
    numbers = read_step(files, step, ["group_id"])["group_id"].unique()
    wanted = sorted(numbers.to_pylist())[:most_groups]
    table = read_step(files, step)
    chosen = pc.is_in(table["group_id"], pa.array(wanted, pa.int64()))
    rows = table.filter(chosen).to_pylist()
    return sorted(rows, key=lambda row: (row["group_id"], row["sample"]))


def _steps_in(file: Path) -> list[int]:
    steps = pq.ParquetFile(file).read(["step"])["step"]
    return sorted(steps.unique().to_pylist())
