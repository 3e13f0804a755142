"""`srft-ray scale`: the same config with several numbers of engines and learners, measured, modelled and predicted."""

import dataclasses
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srft_ray.commands.pipeline_model import (
    Machine,
    Measurement,
    PipelineModel,
    Setting,
    best_split,
    fit,
    leave_one_out,
    median_error,
    splits,
)
from srft_ray.commands.variants import check, complete, folder_of, unfinished, variant
from srft_ray.config.algorithm import make_algorithm
from srft_ray.config.schema import Config, check_values, require
from srft_ray.data.stream import engine_gpus
from srft_ray.models import resolve_device
from srft_ray.observe.journal import read_json_lines
from srft_ray.run.cluster import check_placement, cluster_address, demand, placed

WARM_UP = 3  # steps left out: engines and learners start, kernels compile, the overlapping stream fills


@dataclasses.dataclass(frozen=True)
class Findings:
    """What was measured, the model of all of it, the prediction of each setting by the model of the others (seconds a step; empty
    with one setting), settings that were not run, and of each staleness the best way to use the devices (none if unknown)."""

    measurements: list[Measurement]
    model: PipelineModel
    left_out: list[float]
    others: list[Setting]
    devices: float
    best: list[Setting]


def scale(
    config: Config,
    engines: Sequence[int],
    learners: Sequence[int],
    staleness: Sequence[int] | None,
    steps: int,
    devices: int | None,
) -> str:
    """Runs every combination for `steps` steps without evaluation, and returns the findings as Markdown; they are also written, with a
    plot and JSON, to `<run.dir>/<run.name>-scale/`. Finished runs are not repeated. None: the config's staleness, the most devices run.

    Raises:
        UserError: a setting that cannot be run, before any is started.
        RunFailed: a run failed; the same call goes on with it.
    """
    require(
        steps >= WARM_UP + 2,
        f"--steps {steps} leaves nothing to measure: the first {WARM_UP} steps and the last do not count; pass at least "
        f"{WARM_UP + 2}.",
    )
    require(
        devices is None or devices >= 2,
        f"--devices {devices} cannot be split: pass at least 2, one engine and one learner.",
    )
    settings = [
        Setting(e, n, s)
        for s in staleness or [config.rollout.max_staleness]
        for n in learners
        for e in engines
    ]
    runs = {setting: _variant(config, setting, steps) for setting in settings}
    check(list(runs.values()))
    if todo := unfinished(list(runs.values())):
        _check_cluster(todo)
    measurements = [measure(setting, complete(run)) for setting, run in runs.items()]
    findings = analyse(config, measurements, _machine(config), devices)
    return write(findings, folder_of(config, "scale"))


def _variant(config: Config, setting: Setting, steps: int) -> Config:
    run = variant(config, "scale", str(setting))
    run.rollout.num_engines, run.learner.num_workers, run.rollout.max_staleness = (
        setting.engines,
        setting.learners,
        setting.staleness,
    )
    run.trainer.steps, run.trainer.checkpoint_every, run.trainer.evaluate_every, run.evaluation.data = (
        steps,
        0,
        0,
        {},
    )
    check_values(run)
    stages = [make_algorithm(run.algorithm).stage(step, steps) for step in (0, steps - 1)]
    require(
        all(stage.algorithm.uses_rollouts for stage in stages),
        f"scale measures generation beside learning, but {stages[0].algorithm.name} does not sample rollouts in every step: choose another "
        "algorithm.name, such as srft.",
    )
    return run


def _check_cluster(runs: Sequence[Config]) -> None:
    """UserError if the cluster can never place one of the runs."""
    with placed(max(runs, key=lambda run: demand(run, engines=True, device="cpu").cpus), engines=True) as (
        device,
        _,
    ):
        for run in runs:
            check_placement(demand(run, engines=True, device=device))


def _machine(config: Config) -> Machine:
    """Workers of a CPU run on this machine alone share its cores; those of a cluster, and on GPUs, have their own."""
    if cluster_address(config) or resolve_device(config) == "cuda":
        return Machine()
    return Machine(os.cpu_count(), max(1.0, config.rollout.cpus_per_engine))


def measure(setting: Setting, run_dir: Path) -> Measurement:
    """Medians over the steps of a finished run, without the warm-up and the last step, which publishes nothing."""
    records = read_json_lines(run_dir / "metrics.jsonl")[WARM_UP:-1]

    def middle(key: str, per_second: bool = False) -> float:
        return statistics.median(
            record[key] / (record["time/step"] if per_second else 1.0) for record in records
        )

    return Measurement(
        setting,
        middle("time/step"),
        middle("time/generation"),
        middle("time/learner"),
        middle("time/publish"),
        middle("staleness/mean"),
        middle("tokens", per_second=True),
        middle("tokens/generated", per_second=True),
    )


def analyse(
    config: Config, measurements: list[Measurement], machine: Machine, devices: int | None
) -> Findings:
    model, groups = fit(measurements, machine), config.trainer.groups_per_step
    share = 1.0 if machine.cores else engine_gpus(config)
    measured = [m.setting for m in measurements]
    levels = list(dict.fromkeys(s.staleness for s in measured))
    engines, learners = ({getattr(s, side) for s in measured} for side in ("engines", "learners"))
    others = [
        Setting(e, n, s)
        for s in levels
        for n in _and_beyond(learners)
        for e in _and_beyond(engines)
        if groups % n == 0 and e <= groups
    ]
    devices = devices or max(s.learners + s.engines * share for s in measured)
    best = []
    if len(engines) > 1 and len(learners) > 1:  # else the model does not know how one side scales
        best = [
            best_split(model, found) for level in levels if (found := splits(devices, level, groups, share))
        ]
    return Findings(
        measurements,
        model,
        leave_one_out(measurements, machine) if len(measured) > 1 else [],
        [s for s in others if s not in measured],
        devices,
        best,
    )


def _and_beyond(counts: set[int]) -> list[int]:
    """The counts, and twice the largest if there are two to tell how the side scales."""
    return sorted(counts | ({2 * max(counts)} if len(counts) > 1 else set()))


def write(findings: Findings, folder: Path) -> str:
    """scale.md, scale.json and scale.png; returns the text of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(findings)
    (folder / "scale.md").write_text(text + "\n")
    (folder / "scale.json").write_text(json.dumps(as_json(findings), indent=2) + "\n")
    draw(findings, folder / "scale.png")
    return text


def as_json(findings: Findings) -> dict[str, Any]:
    """Times in seconds a step, utilisations as fractions."""
    model, found = findings.model, findings.measurements
    predicted = {setting: model.stages(setting) for setting in [*findings.others, *findings.best]}
    figures = {
        setting: {
            **dataclasses.asdict(setting),
            **dataclasses.asdict(stages),
            "step_s": stages.step_s,
            "bottleneck": stages.bottleneck,
        }
        for setting, stages in predicted.items()
    }
    return {
        "measured": [
            {
                **dataclasses.asdict(m),
                "overhead_s": m.overhead_s,
                "rollout_utilization": m.rollout_utilization,
                "learner_utilization": m.learner_utilization,
                "bottleneck": model.stages(m.setting).bottleneck,
            }
            for m in found
        ],
        "leave_one_out_s": findings.left_out,
        "median_error": median_error(found, findings.left_out) if findings.left_out else None,
        "model": dataclasses.asdict(model),
        "predicted": [figures[s] for s in findings.others],
        "devices": findings.devices,
        "best_split": [figures[s] for s in findings.best],
    }


def markdown(findings: Findings) -> str:
    model, errors = findings.model, findings.left_out or [None] * len(findings.measurements)
    heads = ("engines", "learners", "staleness", "s per step", "generation", "learner", "publish", "overhead")
    measured = _rows(
        (
            *heads,
            "engines busy",
            "learners busy",
            "mean staleness",
            "tokens/s",
            "bound by",
            "predicted by the others",
            "error",
        ),
        [
            (
                *_setting(m.setting),
                *_seconds(m.step_s, m.generation_s, m.learner_s, m.publish_s, m.overhead_s),
                f"{m.rollout_utilization:.0%}",
                f"{m.learner_utilization:.0%}",
                f"{m.mean_staleness:.2f}",
                f"{m.tokens_per_s:,.0f}",
                model.stages(m.setting).bottleneck,
                *(("–", "–") if seconds is None else (f"{seconds:.3f}", f"{seconds / m.step_s - 1:+z.1%}")),
            )
            for m, seconds in zip(findings.measurements, errors, strict=True)
        ],
    )
    lines = ["Measured (seconds a step, medians):", "", *measured, ""]
    if findings.others:
        stages = [(s, model.stages(s)) for s in findings.others]
        lines += [
            "Predicted, not run:",
            "",
            *_rows(
                (*heads, "bound by"),
                [
                    (
                        *_setting(s),
                        *_seconds(p.step_s, p.generation_s, p.learner_s, p.publish_s, p.overhead_s),
                        p.bottleneck,
                    )
                    for s, p in stages
                ],
            ),
            "",
        ]
    return "\n".join([*lines, *_conclusions(findings)])


def _conclusions(findings: Findings) -> list[str]:
    lines = ["One setting alone cannot check the model: pass more engines or learners."]
    if findings.left_out:
        error = median_error(findings.measurements, findings.left_out)
        lines = [
            f"Median error of the step time of a setting predicted from the others: {error:.1%} ({len(findings.left_out)} settings)."
        ]
    for setting in findings.best:
        stages = findings.model.stages(setting)
        lines.append(
            f"Best split of {findings.devices:g} devices with staleness {setting.staleness}: {setting.engines} engines and "
            f"{setting.learners} learners, {stages.step_s:.3f} s per step, bound by {stages.bottleneck}."
        )
    if not findings.best:
        lines.append(
            "Best split: unknown; it takes two devices, and two numbers of engines and of learners measured."
        )
    if cores := findings.model.machine.cores:
        lines.append(
            f"Engines and learners share {cores} CPU cores here: more workers than cores add nothing, and on GPUs the split is another."
        )
    return lines


def _setting(setting: Setting) -> tuple[str, ...]:
    return tuple(map(str, dataclasses.astuple(setting)))


def _seconds(*values: float) -> tuple[str, ...]:
    return tuple(f"{value:.3f}" for value in values)


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def draw(findings: Findings, path: Path) -> None:
    """Left: the model's step time over engines with the measurements; right: predictions by the other settings over measurements."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    law, check = figure.subplots(1, 2)
    measured = {m.setting: m.step_s for m in findings.measurements}
    for number, (learners, staleness) in enumerate(
        dict.fromkeys((s.learners, s.staleness) for s in measured)
    ):
        known = [
            s for s in [*measured, *findings.others] if (s.learners, s.staleness) == (learners, staleness)
        ]
        line = [Setting(e, learners, staleness) for e in range(1, max(s.engines for s in known) + 1)]
        law.plot(
            [s.engines for s in line],
            [findings.model.stages(s).step_s for s in line],
            f"C{number}-",
            label=f"{learners} learners, staleness {staleness}",
        )
        dots = [s for s in known if s in measured]
        law.plot([s.engines for s in dots], [measured[s] for s in dots], f"C{number}o")
    law.set(xlabel="engines", ylabel="s per step (line: model, dot: measured)", ylim=(0, None))
    law.legend(fontsize="small")
    if findings.left_out:
        most = 1.1 * max(*measured.values(), *findings.left_out)
        check.fill_between([0, most], [0, 0.85 * most], [0, 1.15 * most], alpha=0.15, label="within 15 %")
        check.plot([0, most], [0, most], "k:")
        check.plot(list(measured.values()), findings.left_out, "o")
        check.legend(fontsize="small")
    check.set(xlabel="measured, s per step", ylabel="predicted by the other settings, s per step")
    figure.savefig(path, dpi=120)
