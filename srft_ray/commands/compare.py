"""`srft-ray compare`: the same run with several algorithms and seeds, shown as one table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from algorithms import Algorithm
from srft_ray.commands.compare_budget import Reached, budget_table, curve
from srft_ray.commands.compare_runs import Comparison, check_all, planned_runs, train_in_order
from srft_ray.commands.compare_significance import Runs, differences, sentences
from srft_ray.commands.compare_table import Outcome, cost, quality, table
from srft_ray.commands.compare_tuning import Sweep, best_rates, try_rates, tuned, tuning_table
from srft_ray.commands.compare_variants import Sections
from srft_ray.commands.report import report
from srft_ray.commands.variants import folder_of
from srft_ray.config.load import as_config
from srft_ray.config.schema import Config
from srft_ray.errors import require
from srft_ray.models import count_parameters, is_local
from srft_ray.observe.report import evaluations_of_model

BEFORE = "(before)"  # the row of the config's model


def compare(
    config: Config | str | Path,
    algorithms: Sequence[str | Algorithm],
    seeds: Sequence[int],
    variants: Mapping[str, Sections] | None = None,
    sweep: Sweep | None = None,
    budgets: Sequence[float] = (),
    parallel: int = 1,
) -> str:
    """Trains each algorithm and variant with each seed and returns Markdown tables.

    Runs that differ in method, seed or learning rate only are trained one after another by the same engines
    and learners' processes; where more differs, such as the model or the sampling, these start anew.

    The tables are also written, with the figures of every run, to `<run.dir>/<run.name>-compare/`, beside
    compare.html, which shows all runs. They are: differences from the first method, paired by seed and
    prompt; figures and cost; the methods at equal operations. Finished runs are not repeated. The config that
    is passed is not changed.

    Args:
        config: a config, or the path of its YAML file.
        algorithms: names, as in `srft-ray algorithms`, and instances, such as `SRFT(sft_scale=0.25)`. A name
            that is the config's `algorithm.name` takes the settings of the config's `algorithm` section; any
            other name takes the algorithm's defaults. `labels` tells the row and the run directory of each.
        seeds: values of `run.seed`.
        variants: sections by label, as of `read_variants`: `{"slow": {"learner": {"lr": 1e-7}}}`. One with
            `"after": label` begins with the model of that method and seed.
        sweep: learning rates to choose from for each method, on seeds of its own; None for none.
        budgets: in 10^12 operations, at which the methods are compared; see `budget_table`.
        parallel: runs at the same time. They are dealt to so many processes.

    Raises:
        UserError: bad config or algorithm; it is raised before any run starts.
        RunFailed: a run failed; the same call continues with this run.
    """
    require(parallel >= 1, f"--parallel {parallel} must be at least 1.")
    config = as_config(config)
    comparisons = planned_runs(config, algorithms, seeds, variants)
    tuning = _tuning_runs(config, algorithms, seeds, variants, sweep) if sweep else []
    check_all(tuning or comparisons)
    tried = try_rates([(one.label, one.run) for one in tuning], sweep, parallel) if sweep else []
    if tried:
        comparisons = _with_rates(comparisons, best_rates(tried))
        check_all(comparisons)
    train_in_order(comparisons, parallel)
    outcomes = [outcome for one in comparisons for outcome in _outcomes(one, config.model.path)]
    outcomes.sort(key=lambda outcome: outcome.algorithm != BEFORE)
    found: dict[str, dict[int, Path]] = {comparison.label: {} for comparison in comparisons}
    for comparison in comparisons:
        run = comparison.run.config
        found[comparison.label][run.run.seed] = run.run_dir
    extra = [_equal_operations(comparisons, budgets), tuning_table(tried)]
    return _write(outcomes, found, folder_of(config, "compare"), extra)


def _tuning_runs(
    config: Config,
    algorithms: Sequence[str | Algorithm],
    seeds: Sequence[int],
    variants: Mapping[str, Sections] | None,
    sweep: Sweep,
) -> list[Comparison]:
    """The runs of a sweep, without their learning rates. Raises UserError for one that says nothing."""
    sweep.check(seeds)
    tuning = planned_runs(config, algorithms, sweep.seeds, variants)
    for one in tuning:
        require(
            one.after is None,
            "--learning-rates tries methods that begin with the config's model, and "
            f"{one.label} begins with another: leave the sweep out, and set its learner.lr.",
        )
    return tuning


def _equal_operations(comparisons: Sequence[Comparison], budgets: Sequence[float]) -> str:
    curves: dict[str, list[list[Reached]]] = {comparison.label: [] for comparison in comparisons}
    for comparison in comparisons:
        parameters = count_parameters(comparison.run.config.model)
        curves[comparison.label].append(curve(comparison.folders, parameters))
    return budget_table(curves, budgets)


def _with_rates(comparisons: Sequence[Comparison], rates: Mapping[str, float]) -> list[Comparison]:
    """The runs with the learning rates that a sweep has chosen."""
    return [Comparison(one.label, tuned(one.run, rates[one.label])) for one in comparisons]


def _outcomes(comparison: Comparison, model: str) -> list[Outcome]:
    """The outcomes of a run, which is finished, and of the config's model if it began with this `model`."""
    config = comparison.run.config
    parameters = count_parameters(config.model)
    summary = json.loads((config.run_dir / "summary.json").read_text())
    after = quality(config, evaluations_of_model(summary))
    outcomes = [Outcome(comparison.label, config.run.seed, after | cost(comparison.folders, parameters))]
    if comparison.after or not _is_same(config.model.path, model):
        return outcomes
    first = [record for record in summary["evaluations"] if record["step"] == 0]
    return [Outcome(BEFORE, config.run.seed, quality(config, first)), *outcomes]


def _is_same(model: str, other: str) -> bool:
    """Whether two paths name one model: a run's config holds the absolute path of a directory."""
    if not is_local(other):
        return model == other
    return Path(model).expanduser().absolute() == Path(other).expanduser().absolute()


def _write(outcomes: Sequence[Outcome], runs: Runs, folder: Path, extra: Sequence[str]) -> str:
    """Writes compare.json, differences.json, compare.md and compare.html to the folder.

    Args:
        extra: tables below those of the outcomes.

    Returns:
        The text of compare.md.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = [vars(outcome) for outcome in outcomes]
    (folder / "compare.json").write_text(json.dumps(records, indent=2) + "\n")
    found = differences(runs)
    (folder / "differences.json").write_text(json.dumps(found, indent=2) + "\n")
    report([folder for by_seed in runs.values() for folder in by_seed.values()], folder / "compare.html")
    text = "\n\n".join(part for part in (sentences(found), table(outcomes), *extra) if part)
    (folder / "compare.md").write_text(text + "\n")
    return text
