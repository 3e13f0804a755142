"""`srft-ray compare`: the same run with several algorithms and seeds, shown as one table."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from algorithms import Algorithm
from srft_ray.commands.variants import Variant, check, complete, derived_config, folder_of
from srft_ray.config.load import as_config
from srft_ray.config.schema import Config
from srft_ray.errors import UserError, require
from srft_ray.models import count_parameters
from srft_ray.observe.journal import read_json_lines
from srft_ray.run.cluster import start_ray
from srft_ray.run.placement import Placement, demand


@dataclass(frozen=True)
class Outcome:
    """Figures of the model before or after one run: the evaluation on every set and, after it, the cost."""

    algorithm: str
    seed: int
    figures: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """One run of a comparison; `label` names its algorithm in the table and in the run directory."""

    label: str
    run: Variant


def compare(config: Config | str | Path, algorithms: Sequence[str | Algorithm], seeds: Sequence[int]) -> str:
    """Trains each algorithm with each seed and returns a Markdown table.

    The table is also written, with the figures of every run, to `<run.dir>/<run.name>-compare/`. Finished
    runs are not repeated. The config that is passed is not changed.

    Args:
        config: a config, or the path of its YAML file.
        algorithms: names, as in `srft-ray algorithms`, and instances, such as `SRFT(sft_scale=0.25)`. A name
            that is the config's `algorithm.name` takes the settings of the config's `algorithm` section; any
            other name takes the algorithm's defaults. `labels` tells the row and the run directory of each.
        seeds: values of `run.seed`.

    Raises:
        UserError: bad config or algorithm; it is raised before any run starts.
        RunFailed: a run failed; the same call continues with this run.
    """
    config = as_config(config)
    comparisons = planned_runs(config, algorithms, seeds)
    runs = [comparison.run for comparison in comparisons]
    check(runs)
    # One Ray for all runs, large enough for the largest of them.
    demands = [demand(run.resolved, Placement("cpu"), engines=True) for run in runs]
    largest = max(demands, key=lambda needed: needed.cpus)
    start_ray(config.cluster, largest.cpus, largest.custom)
    parameters = count_parameters(config.model)
    outcomes = [outcome for comparison in comparisons for outcome in _outcomes(comparison, parameters)]
    return _write(outcomes, folder_of(config, "compare"))


def planned_runs(
    config: Config, algorithms: Sequence[str | Algorithm], seeds: Sequence[int]
) -> list[Comparison]:
    """The runs of a comparison in the order of training: all algorithms of one seed, then of the next.

    Raises:
        UserError: no evaluation set, algorithm or seed, or something that is no algorithm.
    """
    require(
        bool(config.evaluation.data),
        "compare needs evaluation sets: add one, such as evaluation.data.heldout.split=heldout .",
    )
    require(len(algorithms) > 0, "compare needs at least one algorithm.")
    require(len(seeds) > 0, "compare needs at least one seed.")
    labelled = labels(algorithms)
    return [
        Comparison(label, _variant(config, label, algorithm, seed))
        for seed in dict.fromkeys(seeds)
        for label, algorithm in labelled.items()
    ]


def labels(algorithms: Iterable[str | Algorithm]) -> dict[str, str | Algorithm]:
    """The algorithms by label. The run directory of an algorithm is `<label>-seed<seed>`.

    The label is the algorithm's name. A repeated name is the same run and is trained once. Every instance is
    a run of its own: if its label is taken by an earlier entry it gets `-2`, then `-3`, in the order of the
    list. So the same list gives the same directories again.

    Raises:
        UserError: an entry is neither a name nor an instance of an algorithm with a usable name.
    """
    found: dict[str, str | Algorithm] = {}
    for entry in algorithms:
        name = _name_of(entry)
        if isinstance(entry, str) and entry in found.values():
            continue
        label = name
        number = 1
        while label in found:
            number += 1
            label = f"{name}-{number}"
        found[label] = entry
    return found


def _name_of(entry: str | Algorithm) -> str:
    if isinstance(entry, str):
        return entry
    if isinstance(entry, type):
        raise UserError(f"compare takes instances of algorithms, not classes: pass {entry.__name__}().")
    require(
        isinstance(entry, Algorithm),
        f"compare takes names and instances of algorithms.Algorithm, not {entry!r}.",
    )
    name = getattr(entry, "name", "")
    require(
        bool(name) and "/" not in name,
        f"{type(entry).__name__} has no name that can be part of a run directory: set its class attribute "
        "name to a word.",
    )
    return name


def _variant(config: Config, label: str, algorithm: str | Algorithm, seed: int) -> Variant:
    """The run of an algorithm with a seed, evaluated at least before the first and after the last step."""
    run = derived_config(config, "compare", f"{label}-seed{seed}")
    run.run.seed = seed
    run.trainer.evaluate_every = config.trainer.evaluate_every or config.trainer.steps
    if isinstance(algorithm, Algorithm):
        return Variant.of(run, algorithm)
    if config.algorithm.get("name") != algorithm:
        run.algorithm = {"name": algorithm}
    return Variant.of(run)


def _outcomes(comparison: Comparison, parameters: int) -> list[Outcome]:
    """The outcomes before and after a run, which is trained first if it is not finished."""
    config = comparison.run.config
    run_dir = complete(comparison.run)
    summary = json.loads((run_dir / "summary.json").read_text())
    before = _quality(config, summary["evaluations"], step=0)
    after = _quality(config, summary["evaluations"], step=config.trainer.steps)
    cost = _cost(run_dir, summary, parameters)
    return [
        Outcome("(before)", config.run.seed, before),
        Outcome(comparison.label, config.run.seed, after | cost),
    ]


def _cost(run_dir: Path, summary: dict[str, Any], parameters: int) -> dict[str, float]:
    """Tokens, operations and time of a run.

    An operation count of 6 per parameter and token trained on and 2 per token generated (arXiv 2604.23747),
    in units of 10^12.
    """
    generated = summary["tokens_generated"]
    trained = summary["tokens"]
    step_times = [record["time/step"] for record in read_json_lines(run_dir / "metrics.jsonl")]
    return {
        "tokens generated": generated,
        "tokens trained on": trained,
        "TFLOPs": parameters * (2 * generated + 6 * trained) / 1e12,
        "s per step": statistics.median(step_times),
    }


def _quality(config: Config, evaluations: Sequence[dict[str, Any]], step: int) -> dict[str, float]:
    """Accuracy in percent on every evaluation set, and entropy in nats per token on the first set."""
    by_set = {record["set"]: record for record in evaluations if record["step"] == step}
    names = list(config.evaluation.data)
    figures = {f"{name} avg@{by_set[name]['samples']}, %": by_set[name]["avg"] for name in names}
    return figures | {"entropy, nats": by_set[names[0]]["entropy"]}


def _write(outcomes: Sequence[Outcome], folder: Path) -> str:
    """Writes compare.json and compare.md to the folder; returns the text of compare.md."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [vars(outcome) for outcome in outcomes]
    (folder / "compare.json").write_text(json.dumps(records, indent=2) + "\n")
    text = table(outcomes)
    (folder / "compare.md").write_text(text + "\n")
    return text


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
