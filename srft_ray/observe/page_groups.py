"""Groups of the ledger that the page of a run shows."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from srft_ray.observe.ledger import FOLDER
from srft_ray.text import sanitize_text

STEP_FILE = re.compile(r"step-(\d+)-\d+\.parquet$")
TOKEN_COLUMNS = ("learner_logprobs", "entropies", "ratios")  # those that a run writes with ledger.tokens
DIGITS = 4  # of a figure of a token


def sampled_groups(
    run_dir: Path,
    most_steps: int,
    most_groups: int,
    characters: int,
    tokens: int,
    pieces: Callable[[Sequence[int]], list[str]] | None,
) -> dict[str, Any]:
    """Groups of some steps, with all of their completions; only the files of those steps are read."""
    files = _files_by_step(run_dir)
    chosen = spread(sorted(files), most_steps)
    groups: list[dict[str, Any]] = []
    for step in chosen:
        rows = _rows(files[step], most_groups)
        by_group: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            by_group.setdefault(row["group_id"], []).append(row)
        groups += [_group(found, characters, tokens, pieces) for found in by_group.values()]
    return {"steps": len(files), "shown": groups}


def spread(steps: Sequence[int], most: int) -> list[int]:
    """At most so many of the steps, evenly spaced, with the first and the last."""
    if len(steps) <= most:
        return list(steps)
    if most == 1:
        return [steps[-1]]
    places = [round(place * (len(steps) - 1) / (most - 1)) for place in range(most)]
    return [steps[place] for place in places]


def _files_by_step(run_dir: Path) -> dict[int, list[Path]]:
    found: dict[int, list[Path]] = {}
    for file in sorted((run_dir / FOLDER).glob("step-*.parquet")):
        match = STEP_FILE.match(file.name)
        if match:
            found.setdefault(int(match[1]), []).append(file)
    return found


def _rows(files: Sequence[Path], most_groups: int) -> list[dict[str, Any]]:
    """The rows of the first groups of a step, by number."""
    numbers = {number for file in files for number in _column(file, "group_id")}
    wanted = sorted(numbers)[:most_groups]
    rows: list[dict[str, Any]] = []
    for file in files:
        table = pq.ParquetFile(file).read()
        rows += table.filter(pc.is_in(table["group_id"], pc.cast(_values(wanted), "int64"))).to_pylist()
    return sorted(rows, key=lambda row: (row["group_id"], row["sample"]))


def _column(file: Path, name: str) -> list[int]:
    return pq.ParquetFile(file).read([name])[name].to_pylist()


def _values(numbers: Sequence[int]) -> Any:
    import pyarrow as pa

    return pa.array(numbers, pa.int64())


def _group(
    rows: Sequence[dict[str, Any]],
    characters: int,
    tokens: int,
    pieces: Callable[[Sequence[int]], list[str]] | None,
) -> dict[str, Any]:
    first = rows[0]
    return {
        "step": first["step"],
        "id": first["group_id"],
        "attempt": first["attempt"],
        "prompt": sanitize_text(first["prompt"] or "", characters),
        "reference": sanitize_text(first["reference"] or "", characters),
        "completions": [_completion(row, characters, tokens, pieces) for row in rows],
    }


def _completion(
    row: dict[str, Any],
    characters: int,
    tokens: int,
    pieces: Callable[[Sequence[int]], list[str]] | None,
) -> dict[str, Any]:
    ids = row["response_ids"][:tokens]
    shown = pieces(ids) if pieces else [str(token) for token in ids]
    columns = {name: row.get(name) for name in ("logprobs", *TOKEN_COLUMNS)}
    columns |= {name: row[name] for name in row if name.startswith("weight/")}
    figures = {
        name: [None if value is None else round(value, DIGITS) for value in values[:tokens]]
        for name, values in columns.items()
        if values
    }
    return {
        "sample": row["sample"],
        "origin": row["origin"],
        "text": sanitize_text(row["response"] or "", characters),
        "reward": row["reward"],
        "advantage": row["advantage"],
        "verdict": row["verdict"],
        "answer": sanitize_text(row["answer"] or "", 200),
        "version": row["policy_version"],
        "finish": row["finish_reason"],
        "prefix": row["prefix"],
        "length": len(row["response_ids"]),
        "tokens": [sanitize_text(piece, 100) for piece in shown],
        "figures": figures,
    }
