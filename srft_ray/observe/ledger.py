"""The ledger: every sequence that entered an update, one row each, in `groups/*.parquet`.

There is one file per step and rank. Those of many steps are merged to one file when a checkpoint has made
them final (`ledger_windows`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from algorithms import Completion, Group
from srft_ray.observe import ledger_windows
from srft_ray.observe.ledger_windows import FOLDER, step_of

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("group_id", pa.int64()),
        ("sample", pa.int32()),
        ("origin", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("reward", pa.float64()),
        ("verdict", pa.string()),
        ("answer", pa.string()),
        ("reference", pa.string()),
        ("advantage", pa.float64()),
        ("policy_version", pa.int64()),
        ("seed", pa.int64()),
        ("finish_reason", pa.string()),
        ("prefix", pa.int32()),
        ("attempt", pa.int32()),
        ("row", pa.int64()),
        ("spans", pa.list_(pa.struct([("version", pa.int64()), ("first", pa.int32())]))),
    ]
)

# With ledger.tokens: one entry for each response token, null where a figure has no meaning.
PER_TOKEN = pa.list_(pa.float32())
TOKEN_COLUMNS = (
    ("learner_logprobs", PER_TOKEN),
    ("entropies", PER_TOKEN),
    ("ratios", PER_TOKEN),
    ("weights", pa.map_(pa.string(), PER_TOKEN)),
)
SCHEMA_WITH_TOKENS = pa.schema([*SCHEMA, *(pa.field(name, kind) for name, kind in TOKEN_COLUMNS)])


def write(run_dir: Path, step: int, rank: int, groups: Sequence[Group], tokens: bool = False) -> None:
    """Writes the rows of a step's groups to one file per step and rank, which is complete or absent.

    `tokens`: with what the update used of each token, which the completions then hold in `measured`.
    """
    target = run_dir / FOLDER / f"step-{step:06d}-{rank:04d}.parquet"
    part = target.with_suffix(".part")
    schema = SCHEMA_WITH_TOKENS if tokens else SCHEMA
    table = pa.Table.from_pylist(rows(groups, tokens), schema)
    pq.write_table(table, part)
    part.replace(target)


def truncate(run_dir: Path, step: int) -> None:
    """Removes the rows of steps >= `step`."""
    for file in (run_dir / FOLDER).glob("step-*"):
        found = step_of(file)
        if found is not None and found >= step:
            file.unlink()
    ledger_windows.truncate(run_dir, step)


def rows(groups: Sequence[Group], tokens: bool = False) -> list[dict[str, Any]]:
    """One row for each completion that is trained on."""
    pairs = [(group, completion) for group in groups for completion in group.trained]
    if not tokens:
        return [_row(*pair) for pair in pairs]
    return [{**_row(*pair), **_measured(pair[1])} for pair in pairs]


def _measured(completion: Completion) -> dict[str, Any]:
    """The figures of each token; null in a step whose update was refused."""
    found = {name: completion.measured.get(name) for name, _ in TOKEN_COLUMNS}
    weights = found["weights"]
    return {**found, "weights": weights and list(weights.items())}


def _row(group: Group, completion: Completion) -> dict[str, Any]:
    return {
        "step": group.step,
        "group_id": group.group_id,
        "sample": completion.sample,
        "origin": completion.origin,
        "prompt": encodable(group.prompt),
        "response": encodable(completion.text),
        "prompt_ids": group.prompt_ids,
        "response_ids": completion.ids,
        "logprobs": sampled_logprobs(completion),
        "reward": completion.reward,
        "verdict": completion.verdict,
        "answer": encodable(completion.answer),
        "reference": encodable(group.reference),
        "advantage": completion.advantage,
        "policy_version": completion.policy_version,
        "seed": completion.seed,
        "finish_reason": completion.finish_reason,
        "prefix": completion.prefix,
        "attempt": group.attempt,
        "row": group.row,
        "spans": [{"version": version, "first": first} for version, first in completion.spans] or None,
    }


def sampled_logprobs(completion: Completion) -> list[float | None] | None:
    """The engine's log-probs. Tokens that it did not sample have none; demonstrations have none at all."""
    if not completion.logprobs:
        return completion.logprobs
    found: list[float | None] = list(completion.logprobs)
    for first, end in [(0, completion.prefix), *completion.observed]:
        found[first:end] = [None] * (end - first)
    return found


def encodable(text: str | None) -> str | None:
    """The text with `?` for each lone surrogate, which no file can hold. Nothing else is changed."""
    return text and text.encode(errors="replace").decode()
