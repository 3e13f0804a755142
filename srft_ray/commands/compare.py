"""`srft-ray compare`: the same run with several algorithms and seeds, shown as one table."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from algorithms import Algorithm
from srft_ray.commands.compare_budget import budget_table
from srft_ray.commands.compare_significance import Runs, differences, sentences
from srft_ray.commands.compare_table import Outcome, cost, quality, table
from srft_ray.commands.compare_tuning import Sweep, best_rates, try_rates, tuned, tuning_table
from srft_ray.commands.compare_variants import Sections, check_variant, with_sections
from srft_ray.commands.report import report
from srft_ray.commands.side_by_side import train_all
from srft_ray.commands.variants import Variant, check, derived_config, folder_of
from srft_ray.config.load import as_config
from srft_ray.config.schema import Config
from srft_ray.errors import UserError, require
from srft_ray.models import count_parameters


@dataclass(frozen=True)
class Comparison:
    """One run of a comparison; `label` names its algorithm in the table and in the run directory."""

    label: str
    run: Variant


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
        variants: sections by label, as of `read_variants`: `{"slow": {"learner": {"lr": 1e-7}}}`.
        sweep: learning rates to choose from for each method, on seeds of its own; None for none.
        budgets: in 10^12 operations, at which the methods are compared; see `budget_table`.
        parallel: runs at the same time, each in a process of its own.

    Raises:
        UserError: bad config or algorithm; it is raised before any run starts.
        RunFailed: a run failed; the same call continues with this run.
    """
    require(parallel >= 1, f"--parallel {parallel} must be at least 1.")
    config = as_config(config)
    comparisons = planned_runs(config, algorithms, seeds, variants)
    tuning = []
    if sweep:
        sweep.check(seeds)
        tuning = planned_runs(config, algorithms, sweep.seeds, variants)
    runs = [comparison.run for comparison in tuning or comparisons]
    check(runs)
    parameters = count_parameters(config.model)
    tried = try_rates([(one.label, one.run) for one in tuning], sweep, parallel) if sweep else []
    if tried:
        comparisons = _with_rates(comparisons, best_rates(tried))
        check([comparison.run for comparison in comparisons])
    train_all([comparison.run for comparison in comparisons], parallel)
    outcomes = [outcome for comparison in comparisons for outcome in _outcomes(comparison, parameters)]
    found = {comparison.label: {} for comparison in comparisons}
    for comparison in comparisons:
        run = comparison.run.config
        found[comparison.label][run.run.seed] = run.run_dir
    extra = [budget_table(found, parameters, budgets), tuning_table(tried)]
    return _write(outcomes, found, folder_of(config, "compare"), extra)


def _with_rates(comparisons: Sequence[Comparison], rates: Mapping[str, float]) -> list[Comparison]:
    """The runs with the learning rates that a sweep has chosen."""
    return [Comparison(one.label, tuned(one.run, rates[one.label])) for one in comparisons]


def planned_runs(
    config: Config,
    algorithms: Sequence[str | Algorithm],
    seeds: Sequence[int],
    variants: Mapping[str, Sections] | None = None,
) -> list[Comparison]:
    """The runs of a comparison in the order of training: all algorithms of one seed, then of the next.

    Raises:
        UserError: no evaluation set, algorithm or seed, or something that is no algorithm.
    """
    require(
        bool(config.evaluation.data),
        "compare needs evaluation sets: add one, such as evaluation.data.heldout.split=heldout .",
    )
    given = variants or {}
    require(len(algorithms) + len(given) > 0, "compare needs at least one algorithm.")
    require(len(seeds) > 0, "compare needs at least one seed.")
    labelled = labels(algorithms)
    for name, sections in given.items():
        check_variant(name, sections)
        require(name not in labelled, f"The variant {name} has the name of an algorithm of the comparison.")
    found = []
    for seed in dict.fromkeys(seeds):
        for label, algorithm in labelled.items():
            found.append(Comparison(label, _variant(config, label, algorithm, seed)))
        for label, sections in given.items():
            found.append(Comparison(label, _section_variant(config, label, sections, seed)))
    return found


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
    run = _seeded(config, label, seed)
    if isinstance(algorithm, Algorithm):
        return Variant.of(run, algorithm)
    if config.algorithm.get("name") != algorithm:
        run.algorithm = {"name": algorithm}
    return Variant.of(run)


def _section_variant(
    config: Config,
    label: str,
    sections: Sections,
    seed: int,
) -> Variant:
    """The run of a variant with a seed."""
    run = _seeded(with_sections(config, sections), label, seed)
    # The names and directories are those of the comparison's config.
    run.run = _seeded(config, label, seed).run
    return Variant.of(run)


def _seeded(config: Config, label: str, seed: int) -> Config:
    run = derived_config(config, "compare", f"{label}-seed{seed}")
    run.run.seed = seed
    run.trainer.evaluate_every = config.trainer.evaluate_every or config.trainer.steps
    return run


def _outcomes(comparison: Comparison, parameters: int) -> list[Outcome]:
    """The outcomes before and after a run, which is finished."""
    config = comparison.run.config
    run_dir = config.run_dir
    summary = json.loads((run_dir / "summary.json").read_text())
    before = quality(config, summary["evaluations"], step=0)
    after = quality(config, summary["evaluations"], step=config.trainer.steps)
    spent = cost(run_dir, summary, parameters)
    return [
        Outcome("(before)", config.run.seed, before),
        Outcome(comparison.label, config.run.seed, after | spent),
    ]


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
