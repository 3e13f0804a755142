"""The part of `srft-ray benchmark` that compares two models on the same prompts."""

from collections.abc import Mapping

import numpy as np

from srft_ray.commands.benchmark_scores import MISSING, Results, Scores, table
from srft_ray.data.benchmarks import Found
from srft_ray.observe import stats

SIGNIFICANT = 0.05


def comparison(
    sets: Mapping[str, Found],
    results: Results,
    first: str,
    second: str,
) -> str:
    """Differences of two models on the same prompts, with p-values of a permutation test, and Holm's."""
    before = results[first]
    after = results[second]
    found = {name: paired_scores(before[name], after[name]) for name in sets}
    p_values = [one.p for one in found.values()]
    adjusted = stats.holm(p_values)
    rows = []
    for (name, one), p in zip(found.items(), adjusted, strict=True):
        better, worse = flips(before[name].averages, after[name].averages)
        row = [
            sets[name].benchmark.title,
            _difference(one),
            f"{one.p:.4f}",
            _marked(p),
            f"{better} / {worse}",
            _prompts_needed(one),
        ]
        rows.append(row)
    heads = [
        f"{second} − {first}",
        "difference, points",
        "p",
        "p (Holm)",
        "prompts better / worse",
        "prompts for 80 % power",
    ]
    return table(heads, rows)


def _difference(one: stats.Paired) -> str:
    """The mean difference with its interval, in percentage points."""
    mean = 100 * one.mean
    low = 100 * one.interval.low
    high = 100 * one.interval.high
    return f"{mean:+z.1f} [{low:+z.1f}, {high:+z.1f}]"


def _marked(p: float) -> str:
    """A p-value, with a star if it is significant."""
    if p < SIGNIFICANT:
        return f"{p:.4f} *"
    return f"{p:.4f}"


def _prompts_needed(one: stats.Paired) -> str:
    needed = stats.prompts_needed(one.deviation, one.mean)
    if not np.isfinite(needed):
        return MISSING
    return f"{needed:.0f}"


def paired_scores(first: Scores, second: Scores) -> stats.Paired:
    """Raises ValueError if the models were not asked the same prompts."""
    if not np.array_equal(first.strict.prompt_ids, second.strict.prompt_ids):
        raise ValueError("The two models were evaluated on different prompts.")
    return stats.paired(first.averages, second.averages)


def flips(first_P: np.ndarray, second_P: np.ndarray) -> tuple[int, int]:
    """Prompts that a model answers mostly right and the other does not: gained and lost by the second."""
    was = first_P > 0.5
    now = second_P > 0.5
    return int((now & ~was).sum()), int((was & ~now).sum())
