"""Methods at equal budgets in operations: what each had reached when it had spent as much as the others."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from srft_ray.commands.analysis.records import accuracy_by_cost
from srft_ray.errors import require
from srft_ray.observe.page_comparisons import model_step


class Reached(NamedTuple):
    """The last evaluation of a run within a budget: after `step` steps, avg@k of each set in percent."""

    step: int
    teraflops: float
    averages: dict[str, float]


def curve(folders: Sequence[Path], parameters: int) -> list[Reached]:
    """The evaluations of runs that go on from each other, by what had been spent before them in all.

    Operations are those of `cost.teraflops`.
    """
    found: list[Reached] = []
    steps, spent = 0, 0.0
    for folder in folders:
        own = _with_chosen(folder, _curve(folder, parameters))
        found += [Reached(steps + one.step, spent + one.teraflops, one.averages) for one in own]
        if own:
            steps, spent = found[-1].step, found[-1].teraflops
    return found


def _with_chosen(run_dir: Path, points: list[Reached]) -> list[Reached]:
    """With early stopping the model after all that was spent is that of the best evaluation, not the last."""
    chosen = model_step(run_dir)
    averages = [point.averages for point in points if point.step == chosen]
    return [*points[:-1], points[-1]._replace(averages=averages[0])] if averages else points


def _curve(run_dir: Path, parameters: int) -> list[Reached]:
    by_step: dict[int, list[dict[str, Any]]] = {}
    for row in accuracy_by_cost(run_dir, parameters):
        by_step.setdefault(row["step"], []).append(row)
    return [
        Reached(step, rows[0]["TFLOPs"], {row["set"]: row["avg"] for row in rows})
        for step, rows in sorted(by_step.items())
    ]


def within(points: Sequence[Reached], budget: float) -> Reached:
    """The last evaluation that costs no more than the budget; the first one costs nothing."""
    return [point for point in points if point.teraflops <= budget * (1 + 1e-9)][-1]


def budget_table(
    curves: Mapping[str, Sequence[Sequence[Reached]]],
    budgets: Sequence[float] = (),
) -> str:
    """A Markdown table of all methods at each budget, mean ± standard deviation over seeds.

    Nothing is interpolated: a method stands where its last evaluation within the budget was, so the sets
    must be evaluated during training (trainer.evaluate_every). Empty where no run has evaluations.

    Args:
        curves: of every run, by method.
        budgets: in 10^12 operations; by default what the cheapest run spent in all.

    Raises:
        UserError: a budget is not positive.
    """
    require(all(budget > 0 for budget in budgets), "--tflops must be positive numbers, such as 0.5,2.")
    points = [one for found in curves.values() for one in found]
    if not points or not all(points):
        return ""
    chosen = budgets or [min(one[-1].teraflops for one in points)]
    sets = list(points[0][0].averages)
    lines = [
        f"| at equal TFLOPs | method | steps | {' | '.join(sets)} |",
        "|---" * (3 + len(sets)) + "|",
    ]
    lines += [_line(budget, label, found, sets) for budget in chosen for label, found in curves.items()]
    return "\n".join(lines)


def _line(
    budget: float,
    label: str,
    curves: Sequence[Sequence[Reached]],
    sets: Sequence[str],
) -> str:
    reached = [within(points, budget) for points in curves]
    steps = [point.step for point in reached]
    shown = f"{min(steps)}" if min(steps) == max(steps) else f"{min(steps)}–{max(steps)}"
    cells = [_cell([point.averages[name] for point in reached]) for name in sets]
    return f"| {budget:.3g} | {label} | {shown} | {' | '.join(cells)} |"


def _cell(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.1f} ± {deviation:.1f}"
