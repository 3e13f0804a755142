"""`srft-ray compare`: the same run with several algorithms and seeds, as one table. Finished runs are not repeated."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from srft_ray.commands.variants import check, complete, folder_of, variant
from srft_ray.config.algorithm import make_algorithm
from srft_ray.config.schema import Config, require
from srft_ray.models import count_parameters
from srft_ray.observe.journal import read_json_lines
from srft_ray.run.cluster import demand, start_ray


@dataclass(frozen=True)
class Outcome:
    """Final figures of one run: evaluation by set, what it cost, and what it did."""

    algorithm: str
    seed: int
    figures: dict[str, float]


def compare(config: Config, algorithms: Sequence[str], seeds: Sequence[int]) -> str:
    """Trains each algorithm with each seed on the config; returns a Markdown table, also written with the figures of every
    run to `<run.dir>/<run.name>-compare/`. The config's `algorithm` section is used for the algorithm that it names.

    Raises:
        UserError: bad config, before anything is started.
        RunFailed: a run failed; the same call goes on with it.
    """
    require(
        bool(config.evaluation.data),
        "compare needs evaluation sets: add one, such as evaluation.data.heldout.split=heldout .",
    )
    runs = [_variant(config, algorithm, seed) for seed in seeds for algorithm in algorithms]
    check(runs)
    most = max((demand(run, engines=True, device="cpu") for run in runs), key=lambda asked: asked.cpus)
    start_ray(config, most.cpus, most.custom)
    parameters = count_parameters(config)
    outcomes = [outcome for run in runs for outcome in _outcomes(run, parameters)]
    folder = folder_of(config, "compare")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=2) + "\n")
    text = table(outcomes)
    (folder / "compare.md").write_text(text + "\n")
    return text


def _variant(config: Config, algorithm: str, seed: int) -> Config:
    """The config with another algorithm and seed, evaluated at least before and after."""
    run = variant(config, "compare", f"{algorithm}-seed{seed}")
    run.run.seed = seed
    if config.algorithm.get("name") != algorithm:
        run.algorithm = {"name": algorithm}
    run.trainer.evaluate_every = config.trainer.evaluate_every or config.trainer.steps
    return run


def _outcomes(run: Config, parameters: int) -> list[Outcome]:
    """Of the model before and after the run, which is done first if it is not finished. TFLOPs: 6 per parameter and token
    trained on, 2 per token generated (arXiv 2604.23747)."""
    run_dir = complete(run)
    summary = json.loads((run_dir / "summary.json").read_text())
    generated, trained = summary["tokens_generated"], summary["tokens"]
    seconds = statistics.median(m["time/step"] for m in read_json_lines(run_dir / "metrics.jsonl"))
    cost = {
        "tokens generated": generated,
        "tokens trained on": trained,
        "TFLOPs": parameters * (2 * generated + 6 * trained) / 1e12,
        "s per step": seconds,
    }
    before, after = (_quality(run, summary["evaluations"], step) for step in (0, run.trainer.steps))
    return [
        Outcome("(before)", run.run.seed, before),
        Outcome(make_algorithm(run.algorithm).name, run.run.seed, after | cost),
    ]


def _quality(run: Config, evaluations: Sequence[dict[str, Any]], step: int) -> dict[str, float]:
    """Accuracy on every set, entropy on the first."""
    found = {e["set"]: e for e in evaluations if e["step"] == step}
    figures = {f"{name} avg@{found[name]['samples']}, %": found[name]["avg"] for name in run.evaluation.data}
    return figures | {"entropy, nats": found[next(iter(run.evaluation.data))]["entropy"]}


def table(outcomes: Sequence[Outcome]) -> str:
    """Mean ± standard deviation over seeds, one algorithm a row."""
    columns = list(dict.fromkeys(column for outcome in outcomes for column in outcome.figures))
    seeds = len({outcome.seed for outcome in outcomes})
    lines = [
        f"| algorithm ({seeds} seed{'s' * (seeds > 1)}) | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name in dict.fromkeys(o.algorithm for o in outcomes):
        cells = (
            _spread(
                {o.seed: o.figures[column] for o in outcomes if o.algorithm == name and column in o.figures}
            )
            for column in columns
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(by_seed: dict[int, float]) -> str:
    found = list(by_seed.values())
    if not found:
        return "–"
    mean, deviation = statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else 0.0
    digits = 0 if mean >= 1000 or mean == 0 else 1 if mean >= 10 else 3
    return f"{mean:,.{digits}f} ± {deviation:,.{digits}f}"
