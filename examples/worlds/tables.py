"""The tables of the worlds' page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srft_ray.observe.intervals import t_quantile

BEGIN = "<!-- tables of `make worlds` -->"
END = "<!-- end of the tables -->"
BEFORE = "(before)"
OVER_SEEDS = "p < 0.05 over seeds, * p < 0.05 over seeds and prompts"


def world_text(
    name: str,
    outcomes: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
    gates: str = "",
) -> str:
    """The part of a world: gates, scores with intervals over seeds, and differences from the first method.

    Args:
        outcomes, differences: as compare.json and differences.json have them.
    """
    seeds = len({outcome["seed"] for outcome in outcomes})
    parts = [f"### {name}"]
    if gates:
        parts += ["The gates of the base model:", gates]
    values, units, marks = f"mean and 95 % interval over {seeds} seeds", "seeds", OVER_SEEDS
    if seeds == 1:
        values, units, marks = "one seed", "prompts, which say nothing of other seeds", "p < 0.05"
    parts += [f"Accuracy after training in percent, {values}:", score_table(outcomes)]
    if differences:
        baseline = differences[0]["against"]
        text = (
            f"Points above {baseline}, paired by seed and prompt, with 95 % intervals over {units}. After "
            f"Holm over {len(differences)} tests: **bold** {marks}."
        )
        parts += [text, difference_table(differences)]
    return "\n\n".join(parts)


def short_text(outcomes: Sequence[Mapping[str, Any]]) -> str:
    """The scores of a world for the README."""
    seeds = len({outcome["seed"] for outcome in outcomes})
    text = f"Accuracy in percent on each band, mean and 95 % interval over {seeds} seeds:"
    return f"{text}\n\n{score_table(outcomes)}"


def score_table(outcomes: Sequence[Mapping[str, Any]]) -> str:
    """A row for each method, a column for each set."""
    columns = [name for name in outcomes[0]["figures"] if " avg@" in name]
    methods = list(dict.fromkeys(outcome["algorithm"] for outcome in outcomes))
    rows = []
    for method in methods:
        # The model before training is evaluated once for each method; each seed counts once.
        by_seed = {one["seed"]: one["figures"] for one in outcomes if one["algorithm"] == method}
        cells = [_score([figures[column] for figures in by_seed.values()]) for column in columns]
        rows.append([method, *cells])
    return _markdown(["method", *(column.partition(" avg@")[0] for column in columns)], rows)


def _score(values: Sequence[float]) -> str:
    mean = float(np.mean(values))
    # The seeds of the base model differ by their samples only; intervals are of trained methods too.
    if len(values) < 2:
        return f"{mean:.1f}"
    half = t_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return f"{mean:.1f} ± {half:.1f}"


def difference_table(differences: Sequence[Mapping[str, Any]]) -> str:
    """A row for each method but the first, a column for each set."""
    sets = list(dict.fromkeys(row["set"] for row in differences))
    methods = list(dict.fromkeys(row["method"] for row in differences))
    found = {(row["method"], row["set"]): _difference(row) for row in differences}
    rows = [[method, *(found[method, name] for name in sets)] for method in methods]
    return _markdown(["method", *sets], rows)


def _difference(row: Mapping[str, Any]) -> str:
    mean = 100 * row["mean"]
    text = f"{mean:+z.1f}"
    if np.isfinite(row["low"]):
        text += f" [{100 * row['low']:+z.1f}, {100 * row['high']:+z.1f}]"
    if row["seeds"] > 1 and row["holm over prompts"] < 0.05:
        text += " \\*"
    return f"**{text}**" if row["holm"] < 0.05 else text


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def published(page: str, text: str) -> str:
    """The page with the text between its marks. Raises ValueError where a mark is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The page has no {BEGIN} or no {END}.")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"
