"""`srft-ray compare`: the same run with several algorithms and seeds, shown as one table."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from algorithms import Algorithm
from srft_ray.commands.compare_significance import differences, sentences
from srft_ray.commands.compare_table import Outcome, table
from srft_ray.commands.compare_variants import Sections, check_variant, with_sections
from srft_ray.commands.report import report
from srft_ray.commands.variants import Variant, check, complete, derived_config, folder_of
from srft_ray.config.load import as_config
from srft_ray.config.schema import Config
from srft_ray.errors import UserError, require
from srft_ray.models import count_parameters
from srft_ray.observe.journal import read_json_lines
from srft_ray.run.cluster import start_ray
from srft_ray.run.placement import Placement, demand


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
) -> str:
    """Trains each algorithm and variant with each seed and returns Markdown tables.

    The tables are also written, with the figures of every run, to `<run.dir>/<run.name>-compare/`, beside
    compare.html, which shows all runs. The second table has the differences from the first method, paired by
    seed and prompt. Finished runs are not repeated. The config that is passed is not changed.

    Args:
        config: a config, or the path of its YAML file.
        algorithms: names, as in `srft-ray algorithms`, and instances, such as `SRFT(sft_scale=0.25)`. A name
            that is the config's `algorithm.name` takes the settings of the config's `algorithm` section; any
            other name takes the algorithm's defaults. `labels` tells the row and the run directory of each.
        seeds: values of `run.seed`.
        variants: sections by label, as of `read_variants`: `{"slow": {"learner": {"lr": 1e-7}}}`.

    Raises:
        UserError: bad config or algorithm; it is raised before any run starts.
        RunFailed: a run failed; the same call continues with this run.
    """
    config = as_config(config)
    comparisons = planned_runs(config, algorithms, seeds, variants)
    runs = [comparison.run for comparison in comparisons]
    check(runs)
    # One Ray for all runs, large enough for the largest of them.
    demands = [demand(run.resolved, Placement("cpu"), engines=True) for run in runs]
    largest = max(demands, key=lambda needed: needed.cpus)
    start_ray(config.cluster, largest.cpus, largest.custom)
    parameters = count_parameters(config.model)
    outcomes = [outcome for comparison in comparisons for outcome in _outcomes(comparison, parameters)]
    return _write(outcomes, comparisons, folder_of(config, "compare"))


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


def _write(outcomes: Sequence[Outcome], comparisons: Sequence[Comparison], folder: Path) -> str:
    """Writes compare.json, compare.md and compare.html to the folder; returns the text of compare.md."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [vars(outcome) for outcome in outcomes]
    (folder / "compare.json").write_text(json.dumps(records, indent=2) + "\n")
    runs: dict[str, dict[int, Path]] = {}
    for comparison in comparisons:
        config = comparison.run.config
        runs.setdefault(comparison.label, {})[config.run.seed] = config.run_dir
    found = differences(runs)
    (folder / "differences.json").write_text(json.dumps(found, indent=2) + "\n")
    report([folder for by_seed in runs.values() for folder in by_seed.values()], folder / "compare.html")
    text = "\n\n".join(part for part in (sentences(found), table(outcomes)) if part)
    (folder / "compare.md").write_text(text + "\n")
    return text
