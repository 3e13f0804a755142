"""The learning rate of each method, chosen on seeds of its own before the methods are compared."""

import copy
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from srft_ray.commands.side_by_side import train_all
from srft_ray.commands.variants import Variant
from srft_ray.config.schema import Config
from srft_ray.errors import require
from srft_ray.observe.report import evaluations_of_model


@dataclass(frozen=True)
class Sweep:
    """What is tried.

    Attributes:
        rates: values of learner.lr, the same for every method.
        seeds: values of run.seed that the comparison does not use.
    """

    rates: Sequence[float]
    seeds: Sequence[int]

    def check(self, reported: Sequence[int]) -> None:
        """Raises UserError for a sweep without values, or with seeds that are reported too."""
        require(len(self.rates) > 0, "--learning-rates needs at least one value, such as 1e-6,3e-6.")
        require(all(rate > 0 for rate in self.rates), "--learning-rates must be positive numbers.")
        require(len(self.seeds) > 0, "--tuning-seeds needs at least one seed.")
        shared = sorted(set(self.seeds) & set(reported))
        require(
            not shared,
            f"Seed {shared[0] if shared else ''} is a tuning seed and a reported one: a method would be "
            "judged on what it was tuned on. Choose other --tuning-seeds.",
        )


@dataclass(frozen=True)
class Tried:
    """One learning rate of one method: its score of each tuning seed."""

    label: str
    rate: float
    scores: tuple[float, ...]


def at_rate(run: Variant, label: str, rate: float) -> Variant:
    """The run with a learning rate, in a directory that is named after it."""
    config = copy.deepcopy(run.config)
    config.learner.lr = rate
    config.run.name = f"{label}-lr{rate:g}-seed{config.run.seed}"
    return Variant.of(config, run.algorithm)


def tuned(run: Variant, rate: float) -> Variant:
    """The run that is reported, with the learning rate that was chosen, in the directory of no sweep."""
    config = copy.deepcopy(run.config)
    config.learner.lr = rate
    return Variant.of(config, run.algorithm)


def try_rates(
    planned: Sequence[tuple[str, Variant]],
    sweep: Sweep,
    parallel: int,
) -> list[Tried]:
    """Trains every method with every learning rate and tuning seed, unless it is done, and scores it.

    Args:
        planned: label and run of every method and tuning seed.
        parallel: runs at the same time.
    """
    runs: dict[tuple[str, float], list[Variant]] = {}
    for label in dict.fromkeys(label for label, _ in planned):
        own = [run for name, run in planned if name == label]
        for rate in sweep.rates:
            runs[label, rate] = [at_rate(run, label, rate) for run in own]
    train_all([run for of_rate in runs.values() for run in of_rate], parallel)
    return [
        Tried(label, rate, tuple(score(run.config) for run in of_rate))
        for (label, rate), of_rate in runs.items()
    ]


def score(config: Config) -> float:
    """The mean over the evaluation sets of avg@k of a finished run's model, in percent."""
    summary = json.loads((config.run_dir / "summary.json").read_text())
    return statistics.fmean(one["avg"] for one in evaluations_of_model(summary))


def best_rates(tried: Sequence[Tried]) -> dict[str, float]:
    """Of each method the learning rate with the best mean score; the smaller one of equal ones."""
    best: dict[str, Tried] = {}
    for one in sorted(tried, key=lambda one: one.rate):
        known = best.get(one.label)
        if known is None or statistics.fmean(one.scores) > statistics.fmean(known.scores):
            best[one.label] = one
    return {label: one.rate for label, one in best.items()}


def tuning_table(tried: Sequence[Tried]) -> str:
    """A Markdown table: the mean score of each method and learning rate, the chosen one in bold.

    Empty without a sweep.
    """
    if not tried:
        return ""
    rates = list(dict.fromkeys(one.rate for one in tried))
    best = best_rates(tried)
    cells: dict[str, dict[float, str]] = {}
    for one in tried:
        text = f"{statistics.fmean(one.scores):.1f}"
        cells.setdefault(one.label, {})[one.rate] = f"**{text}**" if best[one.label] == one.rate else text
    lines = [
        f"| learning rate | {' | '.join(f'{rate:g}' for rate in rates)} |",
        "|---" * (len(rates) + 1) + "|",
    ]
    lines += [f"| {label} | {' | '.join(found[rate] for rate in rates)} |" for label, found in cells.items()]
    return "\n".join(lines)
