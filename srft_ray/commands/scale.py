"""`srft-ray scale`: runs a config with several numbers of engines and learners, fits a model of the step time
to the measurements, and predicts other settings."""

import os
import statistics
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from srft_ray.commands.pipeline_fit import fit_pipeline, leave_one_out
from srft_ray.commands.pipeline_model import (
    Machine,
    Measurement,
    PipelineModel,
    Setting,
    best_split,
    splits,
)
from srft_ray.commands.scale_report import Findings, write
from srft_ray.commands.variants import Variant, check, complete, derived_config, folder_of, unfinished
from srft_ray.config.checks import check_values
from srft_ray.config.resolve import Resolved
from srft_ray.config.schema import Config
from srft_ray.errors import require
from srft_ray.observe.journal import read_json_lines
from srft_ray.run.cluster import cluster_address, placed
from srft_ray.run.placement import Placement, check_placement, demand, gpus_per_engine, resolve_device

# These steps are left out: engines and learners start, kernels compile, and the overlapping stream fills.
WARM_UP = 3


def scale(
    config: Config,
    engines: Sequence[int],
    learners: Sequence[int],
    staleness: Sequence[int] | None,
    steps: int,
    devices: int | None,
) -> str:
    """Runs every combination and returns the findings as Markdown.

    Each run has `steps` steps and no evaluation. The findings are also written, with a plot and JSON, to
    `<run.dir>/<run.name>-scale/`. Finished runs are not repeated. `staleness` None takes the config's value;
    `devices` None takes the largest number of devices that a run used.

    Raises:
        UserError: a setting cannot be run; it is raised before any run starts.
        RunFailed: a run failed; the same call continues with this run.
    """
    require(
        steps >= WARM_UP + 2,
        f"--steps {steps} leaves nothing to measure: the first {WARM_UP} steps and the last do not count; "
        f"pass at least {WARM_UP + 2}.",
    )
    require(
        devices is None or devices >= 2,
        f"--devices {devices} cannot be split: pass at least 2, one engine and one learner.",
    )
    levels = staleness or [config.rollout.max_staleness]
    settings = [Setting(e, n, s) for s, n, e in product(levels, learners, engines)]
    runs = {setting: variant_of(config, setting, steps) for setting in settings}
    check(list(runs.values()))
    if todo := unfinished(list(runs.values())):
        _check_cluster([run.resolved for run in todo])
    measurements = [measure(setting, complete(run)) for setting, run in runs.items()]
    findings = analyse(config, measurements, _machine(config), devices)
    return write(findings, folder_of(config, "scale"))


def variant_of(config: Config, setting: Setting, steps: int) -> Variant:
    """The config of one setting, without checkpoints and evaluations, which would disturb the measurement."""
    run = derived_config(config, "scale", str(setting))
    run.rollout.num_engines = setting.engines
    run.learner.num_workers = setting.learners
    run.rollout.max_staleness = setting.staleness
    run.trainer.steps = steps
    run.trainer.checkpoint_every = 0
    run.trainer.evaluate_every = 0
    run.evaluation.data = {}
    check_values(run)
    variant = Variant.of(run)
    stages = [variant.resolved.algorithm.stage(step, steps) for step in (0, steps - 1)]
    require(
        all(stage.algorithm.uses_rollouts for stage in stages),
        f"scale measures generation and learning, but {stages[0].algorithm.name} does not sample rollouts in "
        "every step: choose another algorithm.name, such as srft.",
    )
    return variant


def _check_cluster(runs: Sequence[Resolved]) -> None:
    """Raises UserError if the cluster can never place one of the runs."""
    largest = max(runs, key=lambda run: demand(run, Placement("cpu"), engines=True).cpus)
    with placed(largest, engines=True) as placement:
        for run in runs:
            check_placement(run, placement, engines=True)


def _machine(config: Config) -> Machine:
    """The workers of a CPU run on this machine alone share its cores; those of a cluster or on GPUs do
    not."""
    if cluster_address(config.cluster) or resolve_device(config.run.device) == "cuda":
        return Machine()
    return Machine(os.cpu_count(), max(1.0, config.rollout.cpus_per_engine))


def measure(setting: Setting, run_dir: Path) -> Measurement:
    """Medians over the steps of a finished run without the warm-up and the last step."""
    # The last step publishes no weights.
    records = read_json_lines(run_dir / "metrics.jsonl")[WARM_UP:-1]

    def median(key: str) -> float:
        return statistics.median(record[key] for record in records)

    def median_rate(key: str) -> float:
        return statistics.median(record[key] / record["time/step"] for record in records)

    return Measurement(
        setting,
        step_s=median("time/step"),
        generation_s=median("time/generation"),
        learner_s=median("time/learner"),
        publish_s=median("time/publish"),
        mean_staleness=median("staleness/mean"),
        tokens_per_s=median_rate("tokens"),
        generated_per_s=median_rate("tokens/generated"),
    )


def analyse(
    config: Config, measurements: list[Measurement], machine: Machine, devices: int | None
) -> Findings:
    """Fits the model to the measurements; `devices` None takes the largest number that a run used."""
    model = fit_pipeline(measurements, machine)
    measured = [m.setting for m in measurements]
    share = 1.0 if machine.cores else gpus_per_engine(config.rollout)
    available = devices or max(s.learners + s.engines * share for s in measured)
    groups = config.trainer.groups_per_step
    return Findings(
        measurements,
        model,
        left_out=leave_one_out(measurements, machine) if len(measured) > 1 else [],
        others=_settings_to_predict(measured, groups),
        devices=available,
        best=_best_splits(model, measured, available, groups, share),
    )


def _settings_to_predict(measured: Sequence[Setting], groups: int) -> list[Setting]:
    """Combinations of the measured counts, and twice the largest ones, that can be run and were not."""
    staleness_levels = dict.fromkeys(s.staleness for s in measured)
    engine_counts = _with_double(s.engines for s in measured)
    learner_counts = [n for n in _with_double(s.learners for s in measured) if groups % n == 0]
    combinations = product(staleness_levels, learner_counts, [n for n in engine_counts if n <= groups])
    settings = [Setting(engines, learners, staleness) for staleness, learners, engines in combinations]
    return [setting for setting in settings if setting not in measured]


def _with_double(counts: Iterable[int]) -> list[int]:
    """The different counts, and twice the largest if at least two show how the time depends on it."""
    different = set(counts)
    if len(different) > 1:
        different.add(2 * max(different))
    return sorted(different)


def _best_splits(
    model: PipelineModel, measured: Sequence[Setting], devices: float, groups: int, share: float
) -> list[Setting]:
    """The best split for each staleness; `share` is the devices of an engine.

    It is empty if only one number of engines or of learners was measured: the model does not know how the
    time of that side changes with the number.
    """
    if len({s.engines for s in measured}) < 2 or len({s.learners for s in measured}) < 2:
        return []
    best = []
    for staleness in dict.fromkeys(s.staleness for s in measured):
        if candidates := splits(devices, staleness, groups, share):
            best.append(best_split(model, candidates))
    return best
