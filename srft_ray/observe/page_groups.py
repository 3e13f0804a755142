"""Groups of the ledger that the page of a run shows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from srft_ray.observe.ledger_reading import files_by_step, read_rows
from srft_ray.text import sanitize_text

TOKEN_FIGURES = ("learner_logprobs", "entropies", "ratios")  # those that a run writes with ledger.tokens
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
    files = files_by_step(run_dir)
    chosen = spread(sorted(files), most_steps)
    groups: list[dict[str, Any]] = []
    for step in chosen:
        rows = read_rows(files[step], step, most_groups)
        by_group: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            by_group.setdefault(row["group_id"], []).append(row)
        groups += [
            _group(
                found,
                characters,
                tokens,
                pieces,
            )
            for found in by_group.values()
        ]
    return {
        "steps": len(files),
        "shown": groups,
    }


def spread(steps: Sequence[int], most: int) -> list[int]:
    """At most so many of the steps, evenly spaced, with the first and the last."""
    if len(steps) <= most:
        return list(steps)
    if most == 1:
        return [steps[-1]]
    places = [round(place * (len(steps) - 1) / (most - 1)) for place in range(most)]
    return [steps[place] for place in places]


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
        "completions": [
            _completion(
                row,
                characters,
                tokens,
                pieces,
            )
            for row in rows
        ],
    }


def _completion(
    row: dict[str, Any],
    characters: int,
    tokens: int,
    pieces: Callable[[Sequence[int]], list[str]] | None,
) -> dict[str, Any]:
    ids = row["response_ids"][:tokens]
    shown = pieces(ids) if pieces else [str(token) for token in ids]
    columns = {name: row.get(name) for name in ("logprobs", *TOKEN_FIGURES)}
    columns |= {f"weight/{term}": values for term, values in row.get("weights") or ()}
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
