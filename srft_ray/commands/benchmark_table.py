"""The tables of `srft-ray benchmark`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srft_ray.commands.benchmark_comparison import comparison
from srft_ray.commands.benchmark_scores import MISSING, Results, Scores, table
from srft_ray.data.benchmark_sets import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION
from srft_ray.data.benchmarks import Found
from srft_ray.observe import stats
from srft_ray.observe.evaluation import UNJUDGED, Outcomes
from srft_ray.observe.intervals import mean_interval, normal_quantile

REST_HEADS = (
    "truncated",
    "no answer",
    "not judged",
    "tokens, right",
    "tokens, wrong",
)


def markdown(sets: Mapping[str, Found], results: Results) -> str:
    """All tables: sets, the row of the paper's table, pass@k and the rest, and comparisons of models."""
    parts = [_sets_table(sets), _main_table(sets, results)]
    parts += [_detail_table(sets, scores, model) for model, scores in results.items()]
    baseline, *others = results
    parts += [
        comparison(
            sets,
            results,
            baseline,
            other,
        )
        for other in others
    ]
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
    return table(
        [
            "set",
            "prompts",
            "checksum",
            "copy",
            "file",
        ],
        rows,
    )


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
    means = []
    for name in names:
        values = scores[name].lenient
        means.append(None if values is None else float(values.mean()))
    overall = None if None in means else float(np.mean(means))
    return [_share_or_missing(mean) for mean in (*means, overall)]


def _share_or_missing(mean: float | None) -> str:
    if mean is None:
        return MISSING
    return f"{100 * mean:.1f}"


def _note(sets: Mapping[str, Found]) -> str:
    missing = [name for name in (*IN_DISTRIBUTION, *OUT_OF_DISTRIBUTION) if name not in sets]
    if not missing:
        return ""
    return f"Of the paper's sets these are not here: {', '.join(missing)}; averages are over those that are."


def _detail_table(
    sets: Mapping[str, Found],
    scores: Mapping[str, Scores],
    model: str,
) -> str:
    ks: set[int] = set()
    for score in scores.values():
        ks.update(stats.powers_of_two(_samples(score)))
    heads = [
        model,
        *(f"pass@{k}" for k in sorted(ks)),
        "maj@k",
        *REST_HEADS,
    ]
    rows = []
    for name, score in scores.items():
        title = sets[name].benchmark.title
        passes = [_pass_rate(score, k) for k in sorted(ks)]
        majority = share(score.strict.majorities())
        rows.append(
            [
                title,
                *passes,
                majority,
                *_rest(score.strict),
            ]
        )
    return table(heads, rows)


def _pass_rate(score: Scores, k: int) -> str:
    if k > _samples(score):
        return MISSING
    return share(score.strict.pass_rates(k))


def _samples(score: Scores) -> int:
    return int(score.strict.samples.min())


def _rest(found: Outcomes) -> list[str]:
    verdicts = np.array(found.verdicts)
    unanswered = verdicts == "no_answer"
    unjudged = np.isin(verdicts, UNJUDGED)
    return [
        _percent(found.truncated),
        _percent(unanswered),
        _percent(unjudged),
        _mean(found.lengths[found.correct]),
        _mean(found.lengths[~found.correct]),
    ]


def _percent(flags: np.ndarray) -> str:
    return f"{100 * flags.mean():.1f} %"


def _mean(values: np.ndarray) -> str:
    if len(values) == 0:
        return MISSING
    return f"{values.mean():.0f}"


def share(values_P: np.ndarray) -> str:
    """A mean over prompts in percent with its 95 % interval."""
    low, high = mean_interval(values_P)
    return f"{100 * values_P.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def average(sets: Sequence[np.ndarray]) -> str:
    """The mean of several sets' means; its error is that of independent sets."""
    means = [values.mean() for values in sets]
    variances = [values.var(ddof=1) / len(values) for values in sets if len(values) > 1]
    error = float(np.sqrt(sum(variances))) / len(sets)
    half = normal_quantile(0.95) * error
    mean = float(np.mean(means))
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def as_json(sets: Mapping[str, Found], results: Results) -> dict[str, Any]:
    """The averages of all prompts, from which every figure can be computed again."""
    return {
        "sets": {
            name: {
                "file": str(found.file),
                "prompts": len(found.problems),
                "checksum": found.checksum,
            }
            for name, found in sets.items()
        },
        "models": {
            model: {name: _saved(score) for name, score in scores.items()}
            for model, scores in results.items()
        },
    }


def _saved(score: Scores) -> dict[str, Any]:
    lenient = score.lenient
    return {
        "prompt_ids": score.strict.prompt_ids.tolist(),
        "averages": score.averages.tolist(),
        "samples": score.strict.samples.tolist(),
        "lenient": None if lenient is None else lenient.tolist(),
    }
