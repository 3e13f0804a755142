"""The evaluation ledger: every sampled response, one row each, in `evaluations/<set>/step-N.parquet`.

Everything that is reported of an evaluation is computed from it. A table is first written in parts (of a
rank, or of the prompts that were done so far) and joined when all are there: `step-N.parquet` is whole or
absent.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from algorithms import Completion, Group
from srft_ray.observe.ledger import encodable, sampled_logprobs

FOLDER = "evaluations"
FILE_NAME = re.compile(r"step-(?P<step>\d+)(-\d+)?\.(?P<kind>parquet|part|writing)$")
SCHEMA = pa.schema(
    [
        ("set", pa.string()),
        ("step", pa.int64()),
        ("prompt_id", pa.int64()),
        ("sample", pa.int32()),
        ("group_id", pa.int64()),
        ("seed", pa.int64()),
        ("policy_version", pa.int64()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("reward", pa.float64()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("answer", pa.string()),
        ("reference", pa.string()),
        ("finish_reason", pa.string()),
        ("seconds", pa.float64()),
    ]
)
ORDER = [("prompt_id", "ascending"), ("sample", "ascending")]
PLACE = "evaluation"  # key of a row's metadata: prompt_id and sample, where every sample has its own row


def set_folder(run_dir: Path, name: str) -> Path:
    """The folder of a set. Its name is quoted, so that no set leaves the folder of evaluations."""
    quoted = quote(name, safe=" ")
    return run_dir / FOLDER / quoted.replace(".", "%2E", 1 if quoted.startswith(".") else 0)


def table_file(
    run_dir: Path,
    name: str,
    step: int,
) -> Path:
    return set_folder(run_dir, name) / f"step-{step}.parquet"


def part_file(
    run_dir: Path,
    name: str,
    step: int,
    part: int,
) -> Path:
    return set_folder(run_dir, name) / f"step-{step}-{part:06d}.part"


def write_part(
    run_dir: Path,
    name: str,
    step: int,
    part: int,
    groups: Sequence[Group],
) -> None:
    """Writes the rows of some groups of the set; the part is whole or absent."""
    target = part_file(
        run_dir,
        name,
        step,
        part,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(pa.Table.from_pylist(rows(groups), SCHEMA), target)


def join(
    run_dir: Path,
    name: str,
    step: int,
    parts: Iterable[int],
) -> pa.Table:
    """Makes one table of the parts, ordered by prompt and sample, and removes them; returns it.

    Rows of a table that is there already stay, of groups that no part has: a process that died while it
    removed the parts leaves some of them beside the whole table.
    """
    files = [
        part_file(
            run_dir,
            name,
            step,
            part,
        )
        for part in parts
    ]
    target = table_file(run_dir, name, step)
    table = pa.concat_tables([pq.read_table(file, schema=SCHEMA) for file in files])
    if target.exists():
        whole = pq.read_table(target, schema=SCHEMA)
        others = pc.invert(pc.is_in(whole["group_id"], table["group_id"].combine_chunks()))
        table = pa.concat_tables([table, whole.filter(others)])
    table = table.sort_by(ORDER)
    _write(table, target)
    for file in files:
        file.unlink()
    return table


def parts_of(
    run_dir: Path,
    name: str,
    step: int,
) -> list[int]:
    """The numbers of the parts that are there, in order."""
    files = set_folder(run_dir, name).glob(f"step-{step}-*.part")
    return sorted(int(file.stem.rpartition("-")[2]) for file in files)


def finished_groups(
    run_dir: Path,
    name: str,
    step: int,
) -> set[int]:
    """The groups of the set whose rows are in its table or in its parts."""
    whole = table_file(run_dir, name, step)
    parts = [
        part_file(
            run_dir,
            name,
            step,
            part,
        )
        for part in parts_of(run_dir, name, step)
    ]
    files = [whole] if whole.exists() else parts
    found = [pq.read_table(file, columns=["group_id"])["group_id"].to_pylist() for file in files]
    return {group for of_file in found for group in of_file}


def read(
    run_dir: Path,
    name: str,
    step: int,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """The table of a set after `step` optimizer steps. Raises FileNotFoundError if it is not there."""
    return pq.read_table(table_file(run_dir, name, step), columns=columns and list(columns))


def tables(run_dir: Path) -> list[tuple[str, int]]:
    """(set, step) of every table that is there, sorted."""
    found = []
    for file in (run_dir / FOLDER).glob("*/step-*.parquet"):
        match = FILE_NAME.match(file.name)
        if match:
            found.append((unquote(file.parent.name), int(match["step"])))
    return sorted(found)


def truncate(run_dir: Path, step: int) -> None:
    """Removes the tables and parts of evaluations after `step` steps or later, which are about to be
    repeated."""
    for file in (run_dir / FOLDER).glob("*/step-*"):
        match = FILE_NAME.match(file.name)
        if match and int(match["step"]) >= step:
            file.unlink()


def rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row for each rollout of the groups. Groups that only fill a block have none."""
    return [_row(group, rollout) for group in groups if group.group_id >= 0 for rollout in group.rollouts]


def _row(group: Group, rollout: Completion) -> dict[str, Any]:
    place = group.metadata.get(PLACE, {})
    return {
        "set": group.dataset,
        "step": group.step,
        "prompt_id": place.get("prompt_id", group.group_id),
        "sample": place.get("sample", rollout.sample),
        "group_id": group.group_id,
        "seed": rollout.seed,
        "policy_version": rollout.policy_version,
        "prompt": encodable(group.prompt),
        "response": encodable(rollout.text),
        "prompt_ids": group.prompt_ids,
        "response_ids": rollout.ids,
        "logprobs": sampled_logprobs(rollout),
        "reward": rollout.reward,
        "verdict": rollout.verdict,
        "reason": encodable(rollout.reason),
        "answer": encodable(rollout.answer),
        "reference": encodable(group.reference),
        "finish_reason": rollout.finish_reason,
        "seconds": group.finished_at - group.started_at,
    }


def _write(table: pa.Table, target: Path) -> None:
    writing = target.with_suffix(".writing")
    pq.write_table(table, writing, compression="zstd")
    writing.replace(target)
