"""Whether methods differ: differences paired by seed and prompt, with seeds as the units."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srft_ray.observe import evaluation_ledger, stats
from srft_ray.observe.page_comparisons import paired_averages, steps_of_model

Runs = Mapping[str, Mapping[int, Path]]  # run directories by label and seed


def differences(runs: Runs) -> list[dict[str, Any]]:
    """One row for each set and each method after the first: its model's average minus that of the first."""
    baseline, *others = runs
    names = _sets(runs)
    found = [_row(runs, baseline, other, name) for other in others for name in names]
    rows = [row for row in found if row is not None]
    for p, adjusted in (("p", "holm"), ("p over prompts", "holm over prompts")):
        for row, value in zip(rows, stats.holm([row[p] for row in rows]), strict=True):
            row[adjusted] = value
    return rows


def _sets(runs: Runs) -> list[str]:
    """The sets that every run has evaluated."""
    found = [
        {name for name, _ in evaluation_ledger.tables(folder)}
        for by_seed in runs.values()
        for folder in by_seed.values()
    ]
    return sorted(set.intersection(*found)) if found else []


def _row(
    runs: Runs,
    baseline: str,
    other: str,
    name: str,
) -> dict[str, Any] | None:
    """None if no seed's runs have a prompt in common."""
    seeds = sorted(runs[baseline].keys() & runs[other].keys())
    by_seed = [prompt_differences(runs[baseline][seed], runs[other][seed], name) for seed in seeds]
    by_seed = [of_seed for of_seed in by_seed if len(of_seed)]
    if not by_seed:
        return None
    found = stats.over_seeds(by_seed)
    # Where each seed has prompts of its own, these vary with the seed, and its interval is of both.
    wide = found
    if len(seeds) > 1 and _same_prompts(
        [runs[label][seed] for label in (baseline, other) for seed in seeds], name
    ):
        wide = stats.crossed(np.array(by_seed))
    return {
        "method": other,
        "against": baseline,
        "set": name,
        "seeds": len(by_seed),
        "prompts": sum(map(len, by_seed)),
        "mean": found.mean,
        "low": found.interval.low,
        "high": found.interval.high,
        "low over prompts": wide.interval.low,
        "high over prompts": wide.interval.high,
        "p": found.p,
        "p over prompts": wide.p,
    }


def prompt_differences(first: Path, second: Path, name: str) -> np.ndarray:
    """Of each prompt that both have, the average of the second run's model minus the first's."""
    before, after = paired_averages(first, second, name)
    return after - before


def _same_prompts(run_dirs: Sequence[Path], name: str) -> bool:
    """Whether all runs have evaluated the same prompts under the same numbers."""
    columns = ["prompt_id", "prompt"]
    found = set()
    for folder in run_dirs:
        table = evaluation_ledger.read(folder, name, steps_of_model(folder)[name], columns)
        found.add(frozenset(zip(table["prompt_id"].to_pylist(), table["prompt"].to_pylist(), strict=True)))
    return len(found) == 1


def sentences(rows: Sequence[Mapping[str, Any]]) -> str:
    """The differences, one a line; empty without any."""
    return "\n".join(_sentence(row) for row in rows)


def _sentence(row: Mapping[str, Any]) -> str:
    mean = 100 * row["mean"]
    seeds = f"{row['seeds']} seed{'s' * (row['seeds'] > 1)}"
    interval = _shown(row["low"], row["high"])
    wide = _shown(row["low over prompts"], row["high over prompts"])
    adjusted = row["holm over prompts"]
    wide = f"; over prompts too:{wide}, {adjusted:.4f} after Holm" if wide and row["seeds"] > 1 else ""
    return (
        f"{row['method']} − {row['against']} on {row['set']}: {mean:+z.1f}{interval} points, "
        f"p {row['p']:.4f}, {row['holm']:.4f} after Holm ({seeds}, {row['prompts']} prompts{wide})"
    )


def _shown(low: float, high: float) -> str:
    """An interval in points; empty if there is none."""
    return f" [{100 * low:+z.1f}, {100 * high:+z.1f}]" if np.isfinite(low) else ""
