"""The table of `srft-ray compare`."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srft_ray.config.schema import Config
from srft_ray.observe.cost import teraflops
from srft_ray.observe.journal import METRICS, read_json_lines


@dataclass(frozen=True)
class Outcome:
    """Figures of the model before or after one run: the evaluation on every set and, after it, the cost."""

    algorithm: str
    seed: int
    figures: dict[str, float]


def cost(folders: Sequence[Path], parameters: int) -> dict[str, float]:
    """Tokens and operations of runs that go on from each other, and the time of a step of the last one."""
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    generated = sum(summary["tokens_generated"] for summary in summaries)
    trained = sum(summary["tokens"] for summary in summaries)
    step_times = [record["time/step"] for record in read_json_lines(folders[-1] / METRICS)]
    return {
        "tokens generated": generated,
        "tokens trained on": trained,
        "TFLOPs": teraflops(parameters, trained, generated),
        "s per step": statistics.median(step_times),
    }


def quality(config: Config, evaluations: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Accuracy in percent on every evaluation set, and entropy in nats per token on the first set.

    Args:
        evaluations: one for each set, of one model.
    """
    by_set = {record["set"]: record for record in evaluations}
    names = list(config.evaluation.data)
    figures = {f"{name} avg@{by_set[name]['samples']}, %": by_set[name]["avg"] for name in names}
    return figures | {"entropy, nats": by_set[names[0]]["entropy"]}


def table(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table with one algorithm per row: mean ± standard deviation over the seeds."""
    columns = list(dict.fromkeys(column for outcome in outcomes for column in outcome.figures))
    seeds = len({outcome.seed for outcome in outcomes})
    head = f"algorithm ({seeds} seed{'s' * (seeds > 1)})"
    lines = [f"| {' | '.join([head, *columns])} |", "|---" * (len(columns) + 1) + "|"]
    by_algorithm: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_algorithm.setdefault(outcome.algorithm, []).append(outcome)
    for name, found in by_algorithm.items():
        cells = [_cell(found, column) for column in columns]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def _cell(outcomes: Sequence[Outcome], column: str) -> str:
    """Each seed counts once: the model before training is the same for all algorithms of a seed."""
    by_seed = {outcome.seed: outcome.figures[column] for outcome in outcomes if column in outcome.figures}
    values = list(by_seed.values())
    if not values:
        return "–"
    mean = statistics.fmean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    digits = _digits(mean)
    return f"{mean:z,.{digits}f} ± {deviation:,.{digits}f}"


def _digits(mean: float) -> int:
    """Decimal places: fewer for larger figures."""
    if mean >= 1000 or mean == 0:
        return 0
    return 1 if mean >= 10 else 3
