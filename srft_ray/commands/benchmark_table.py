"""The tables of `srft-ray benchmark`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srft_ray.data.benchmarks import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION, Found
from srft_ray.observe import stats
from srft_ray.observe.evaluation import Outcomes
from srft_ray.observe.intervals import mean_interval, normal_quantile

SIGNIFICANT = 0.05
MISSING = "–"


@dataclass(frozen=True)
class Scores:
    """A model's outcomes on one set; `lenient`: each prompt's average by the lenient grader."""

    strict: Outcomes
    lenient: np.ndarray | None = None

    @property
    def averages(self) -> np.ndarray:
        return self.strict.means(self.strict.rewards)


Results = Mapping[str, Mapping[str, Scores]]  # by model, then by set


def markdown(sets: Mapping[str, Found], results: Results) -> str:
    """All tables: sets, the row of the paper's table, pass@k and the rest, and comparisons of models."""
    parts = [_sets_table(sets), _main_table(sets, results)]
    parts += [_detail_table(sets, scores, model) for model, scores in results.items()]
    baseline, *others = results
    parts += [_comparison(sets, results, baseline, other) for other in others]
    return "\n\n".join(parts)


def _sets_table(sets: Mapping[str, Found]) -> str:
    rows = [
        [
            found.benchmark.title,
            str(len(found.problems)),
            found.checksum[:16],
            "as published" if found.is_known else "not compared",
            found.file.name,
        ]
        for found in sets.values()
    ]
    return table(["set", "prompts", "checksum", "copy", "file"], rows)


def _main_table(sets: Mapping[str, Found], results: Results) -> str:
    """avg@k in percent with 95 % intervals over prompts, as the table of the paper is ordered."""
    inside = [name for name in sets if name not in OUT_OF_DISTRIBUTION]
    outside = [name for name in sets if name in OUT_OF_DISTRIBUTION]
    heads = ["model", *(_head(sets[name], results) for name in inside)]
    heads += ["ID average"] if inside else []
    heads += [_head(sets[name], results) for name in outside]
    heads += ["OOD average"] if outside else []
    rows = []
    for model, scores in results.items():
        rows.append([model, *_cells(scores, inside), *_cells(scores, outside)])
        if any(score.lenient is not None for score in scores.values()):
            rows.append([f"{model} (lenient grader)", *_lenient(scores, inside), *_lenient(scores, outside)])
    note = _note(sets)
    return table(heads, rows) + (f"\n\n{note}" if note else "")


def _head(found: Found, results: Results) -> str:
    samples = int(next(iter(results.values()))[found.name].strict.samples.max())
    return f"{found.benchmark.title} avg@{samples}"


def _cells(scores: Mapping[str, Scores], names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [*(share(scores[name].averages) for name in names), average([scores[n].averages for n in names])]


def _lenient(scores: Mapping[str, Scores], names: Sequence[str]) -> list[str]:
    """A choice has no lenient grader: there is nothing to show for it, nor for an average with it."""
    if not names:
        return []
    given = [scores[name].lenient for name in names]
    shown = [MISSING if values is None else f"{100 * values.mean():.1f}" for values in given]
    whole = [values for values in given if values is not None]
    mean = (
        f"{100 * np.mean([values.mean() for values in whole]):.1f}" if len(whole) == len(given) else MISSING
    )
    return [*shown, mean]


def _note(sets: Mapping[str, Found]) -> str:
    missing = [name for name in (*IN_DISTRIBUTION, *OUT_OF_DISTRIBUTION) if name not in sets]
    if not missing:
        return ""
    return f"Of the paper's sets these are not here: {', '.join(missing)}; averages are over those that are."


def _detail_table(sets: Mapping[str, Found], scores: Mapping[str, Scores], model: str) -> str:
    ks = sorted({k for score in scores.values() for k in stats.powers_of_two(_samples(score))})
    heads = [model, *(f"pass@{k}" for k in ks), "maj@k", "truncated", "no answer", "not judged"]
    heads += ["tokens, right", "tokens, wrong"]
    rows = []
    for name, score in scores.items():
        found = score.strict
        fits = [k <= _samples(score) for k in ks]
        passes = [share(found.pass_rates(k)) if fit else MISSING for k, fit in zip(ks, fits, strict=True)]
        rows.append([sets[name].benchmark.title, *passes, share(found.majorities()), *_rest(found)])
    return table(heads, rows)


def _samples(score: Scores) -> int:
    return int(score.strict.samples.min())


def _rest(found: Outcomes) -> list[str]:
    verdicts = np.array(found.verdicts)
    shares = (found.truncated, verdicts == "no_answer", np.isin(verdicts, ("timeout", "error")))
    lengths = [found.lengths[found.correct], found.lengths[~found.correct]]
    means = [f"{values.mean():.0f}" if len(values) else MISSING for values in lengths]
    return [*(f"{100 * values.mean():.1f} %" for values in shares), *means]


def _comparison(sets: Mapping[str, Found], results: Results, first: str, second: str) -> str:
    """Differences of two models on the same prompts, with p-values of a permutation test, and Holm's."""
    names = list(sets)
    found = [paired_scores(results[first][name], results[second][name]) for name in names]
    adjusted = stats.holm([one.p for one in found])
    rows = []
    for name, one, p in zip(names, found, adjusted, strict=True):
        low, high = one.interval
        up, down = flips(results[first][name].averages, results[second][name].averages)
        needed = stats.prompts_needed(one.deviation, one.mean)
        rows.append(
            [
                sets[name].benchmark.title,
                f"{100 * one.mean:+z.1f} [{100 * low:+z.1f}, {100 * high:+z.1f}]",
                f"{one.p:.4f}",
                f"{p:.4f}{' *' if p < SIGNIFICANT else ''}",
                f"{up} / {down}",
                f"{needed:.0f}" if np.isfinite(needed) else MISSING,
            ]
        )
    heads = [f"{second} − {first}", "difference, points", "p", "p (Holm)", "prompts better / worse"]
    return table([*heads, "prompts for 80 % power"], rows)


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


def share(values_P: np.ndarray) -> str:
    """A mean over prompts in percent with its 95 % interval."""
    low, high = mean_interval(values_P)
    return f"{100 * values_P.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def average(sets: Sequence[np.ndarray]) -> str:
    """The mean of several sets' means; its error is that of independent sets."""
    mean = float(np.mean([values.mean() for values in sets]))
    errors = [values.std(ddof=1) / np.sqrt(len(values)) for values in sets if len(values) > 1]
    half = normal_quantile(0.95) * float(np.sqrt(np.sum(np.square(errors)))) / len(sets)
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def as_json(sets: Mapping[str, Found], results: Results) -> dict[str, Any]:
    """The averages of all prompts, from which every figure can be computed again."""
    return {
        "sets": {
            name: {"file": str(found.file), "prompts": len(found.problems), "checksum": found.checksum}
            for name, found in sets.items()
        },
        "models": {
            model: {
                name: {
                    "prompt_ids": score.strict.prompt_ids.tolist(),
                    "averages": score.averages.tolist(),
                    "samples": score.strict.samples.tolist(),
                    "lenient": None if score.lenient is None else score.lenient.tolist(),
                }
                for name, score in scores.items()
            }
            for model, scores in results.items()
        },
    }


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
