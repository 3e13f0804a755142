"""The table of `srft-ray compare`."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """Figures of the model before or after one run: the evaluation on every set and, after it, the cost."""

    algorithm: str
    seed: int
    figures: dict[str, float]


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
