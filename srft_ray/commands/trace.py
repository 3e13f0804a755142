"""`srft-ray trace`: one group of a run's ledger, with everything that is known of each token."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srft_ray.commands.arguments import add_command
from srft_ray.errors import require
from srft_ray.text import sanitize_text

FIGURES = (
    "logprobs",
    "learner_logprobs",
    "entropies",
    "ratios",
)
HEADS = (
    "engine",
    "learner",
    "entropy",
    "ratio",
)


def add_trace(commands: Any) -> None:
    text = "print one group of a run's ledger: prompt, completions, credit, and the figures of every token"
    command = add_command(
        commands,
        "trace",
        run,
        text,
    )
    command.add_argument("run", metavar="RUN", help="a run directory")
    steps = "optimizer step (default the last one in the ledger)"
    command.add_argument(
        "--step",
        type=int,
        default=None,
        metavar="N",
        help=steps,
    )
    groups = "number of the group (default the first of the step)"
    command.add_argument(
        "--group",
        type=int,
        default=None,
        metavar="N",
        help=groups,
    )
    samples = "only this completion of the group (default all)"
    command.add_argument(
        "--sample",
        type=int,
        default=None,
        metavar="N",
        help=samples,
    )
    command.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> int:
    print(
        trace(
            Path(options.run),
            options.step,
            options.group,
            options.sample,
        )
    )
    return 0


def trace(
    run_dir: Path,
    step: int | None = None,
    group: int | None = None,
    sample: int | None = None,
) -> str:
    """One group as text.

    Raises:
        UserError: no ledger, or no such step, group or completion.
    """
    from srft_ray.commands.report import token_pieces_of
    from srft_ray.observe.ledger_reading import files_by_step, read_step

    files = files_by_step(run_dir)
    require(bool(files), f"{run_dir} has no ledger: pass the directory of a run that has done a step.")
    step = max(files) if step is None else step
    require(
        step in files, f"The ledger of {run_dir} has no step {step}: it has {min(files)} to {max(files)}."
    )
    rows = read_step(files[step], step).to_pylist()
    numbers = sorted({row["group_id"] for row in rows})
    group = numbers[0] if group is None else group
    require(group in numbers, f"Step {step} has no group {group}: it has {', '.join(map(str, numbers))}.")
    found = [row for row in rows if row["group_id"] == group and sample in (None, row["sample"])]
    require(bool(found), f"Group {group} of step {step} has no completion {sample}.")
    found.sort(key=lambda row: row["sample"])
    pieces = token_pieces_of(run_dir)
    return "\n".join([*_head(found[0]), *(line for row in found for line in _completion(row, pieces))])


def _head(row: dict[str, Any]) -> list[str]:
    return [
        f"step {row['step']}, group {row['group_id']}, {row['attempt']} groups discarded before it",
        f"reference: {sanitize_text(row['reference'] or '')}",
        sanitize_text(row["prompt"] or ""),
    ]


def _completion(row: dict[str, Any], pieces: Any) -> list[str]:
    facts = [
        f"{row['origin']} {row['sample']}",
        f"reward {row['reward']:g}",
        f"advantage {row['advantage']:+.4f}",
        f"verdict {row['verdict']}",
        f"answer {sanitize_text(row['answer'] or '–')}",
        f"version {_versions(row)}",
        f"seed {row['seed']}",
        f"{len(row['response_ids'])} tokens",
        f"prefix {row['prefix']}",
        row["finish_reason"],
    ]
    return ["", ", ".join(facts), *_token_lines(row, pieces)]


def _versions(row: dict[str, Any]) -> str:
    """The version that sampled a completion, or each with its first token."""
    spans = row.get("spans")
    if not spans:
        return str(row["policy_version"])
    return " and ".join(f"{span['version']} from token {span['first']}" for span in spans)


def _token_lines(row: dict[str, Any], pieces: Any) -> list[str]:
    """One line for each token: its figures, and its text."""
    ids = row["response_ids"]
    weights = dict(row.get("weights") or ())
    columns = [row.get(name) or [None] * len(ids) for name in FIGURES]
    columns += list(weights.values())
    texts = pieces(ids) if pieces else map(str, ids)
    heads = [*HEADS, *(f"w:{name}" for name in weights)]
    lines = [_line(heads, "token")]
    for place, text in enumerate(texts):
        figures = [_figure(column[place]) for column in columns]
        lines.append(_line(figures, repr(sanitize_text(text))))
    return lines


def _line(cells: Sequence[str], last: str) -> str:
    return "  ".join([*(f"{cell:>10.10}" for cell in cells), last])


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
