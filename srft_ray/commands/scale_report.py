"""The findings of `srft-ray scale` as Markdown, JSON and a plot."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srft_ray.commands.pipeline_fit import median_error
from srft_ray.commands.pipeline_model import Measurement, PipelineModel, Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SETTING_HEADS = ("engines", "learners", "staleness")
TIME_HEADS = ("s per step", "generation", "learner", "publish", "overhead")
MEASURED_HEADS = (
    *SETTING_HEADS,
    *TIME_HEADS,
    "engines busy",
    "learners busy",
    "mean staleness",
    "tokens/s",
    "bound by",
    "predicted by the others",
    "error",
)
PREDICTED_HEADS = (*SETTING_HEADS, *TIME_HEADS, "bound by")


@dataclasses.dataclass(frozen=True)
class Findings:
    """What `scale` found.

    Attributes:
        measurements: one for each setting that was run.
        model: fitted to all measurements.
        left_out: the step time in seconds of each measured setting, predicted by a model that is fitted to
            all other settings; empty with one setting.
        others: settings that were not run and are predicted.
        devices: how many devices the best split may use.
        best: the best split for each staleness; empty if the measurements cannot tell it.
    """

    measurements: list[Measurement]
    model: PipelineModel
    left_out: list[float]
    others: list[Setting]
    devices: float
    best: list[Setting]


def write(findings: Findings, folder: Path) -> str:
    """Writes scale.md, scale.json and scale.png to the folder; returns the text of scale.md."""
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(findings)
    (folder / "scale.md").write_text(text + "\n")
    (folder / "scale.json").write_text(json.dumps(as_json(findings), indent=2) + "\n")
    draw(findings, folder / "scale.png")
    return text


def as_json(findings: Findings) -> dict[str, Any]:
    """The findings as JSON values: times in seconds per step, utilisations and errors as fractions."""
    model, measurements = findings.model, findings.measurements
    return {
        "measured": [_measured_figures(model, m) for m in measurements],
        "leave_one_out_s": findings.left_out,
        "median_error": median_error(measurements, findings.left_out) if findings.left_out else None,
        "model": dataclasses.asdict(model),
        "predicted": [_predicted_figures(model, setting) for setting in findings.others],
        "devices": findings.devices,
        "best_split": [_predicted_figures(model, setting) for setting in findings.best],
    }


def _measured_figures(model: PipelineModel, measurement: Measurement) -> dict[str, Any]:
    return dataclasses.asdict(measurement) | {
        "overhead_s": measurement.overhead_s,
        "rollout_utilization": measurement.rollout_utilization,
        "learner_utilization": measurement.learner_utilization,
        "bottleneck": model.step_times(measurement.setting).bottleneck,
    }


def _predicted_figures(model: PipelineModel, setting: Setting) -> dict[str, Any]:
    times = model.step_times(setting)
    derived = {"step_s": times.step_s, "bottleneck": times.bottleneck}
    return dataclasses.asdict(setting) | dataclasses.asdict(times) | derived


def markdown(findings: Findings) -> str:
    """A table of the measured settings, a table of the predicted settings, and the conclusions."""
    errors = findings.left_out or [None] * len(findings.measurements)
    pairs = zip(findings.measurements, errors, strict=True)
    measured = [_measured_row(findings.model, m, predicted_s) for m, predicted_s in pairs]
    lines = ["Measured (seconds per step, medians):", "", *table(MEASURED_HEADS, measured), ""]
    if findings.others:
        predicted = [_predicted_row(findings.model, setting) for setting in findings.others]
        lines += ["Predicted, not run:", "", *table(PREDICTED_HEADS, predicted), ""]
    return "\n".join([*lines, *_conclusions(findings)])


def _measured_row(model: PipelineModel, m: Measurement, predicted_s: float | None) -> list[str]:
    prediction = ["–", "–"]
    if predicted_s is not None:
        prediction = [_seconds(predicted_s), f"{predicted_s / m.step_s - 1:+z.1%}"]
    times = (m.step_s, m.generation_s, m.learner_s, m.publish_s, m.overhead_s)
    return [
        *_setting(m.setting),
        *map(_seconds, times),
        f"{m.rollout_utilization:.0%}",
        f"{m.learner_utilization:.0%}",
        f"{m.mean_staleness:.2f}",
        f"{m.tokens_per_s:,.0f}",
        model.step_times(m.setting).bottleneck,
        *prediction,
    ]


def _predicted_row(model: PipelineModel, setting: Setting) -> list[str]:
    found = model.step_times(setting)
    times = (found.step_s, found.generation_s, found.learner_s, found.publish_s, found.overhead_s)
    return [*_setting(setting), *map(_seconds, times), found.bottleneck]


def _conclusions(findings: Findings) -> list[str]:
    lines = [_accuracy(findings)]
    for setting in findings.best:
        times = findings.model.step_times(setting)
        lines.append(
            f"Best split of {findings.devices:g} devices with staleness {setting.staleness}: "
            f"{setting.engines} engines and {setting.learners} learners, "
            f"{_seconds(times.step_s)} s per step, bound by {times.bottleneck}."
        )
    if not findings.best:
        lines.append(
            "Best split: unknown; it needs at least two devices, and measurements with two numbers of "
            "engines and two numbers of learners."
        )
    if cores := findings.model.machine.cores:
        lines.append(
            f"Engines and learners share {cores} CPU cores here: more workers than cores do not make a step "
            "faster. On GPUs the best split is a different one."
        )
    return lines


def _accuracy(findings: Findings) -> str:
    if not findings.left_out:
        return "One setting alone cannot check the model: pass more numbers of engines or learners."
    error = median_error(findings.measurements, findings.left_out)
    return (
        f"Median error of the step time of a setting predicted from the others: {error:.1%} "
        f"({len(findings.left_out)} settings)."
    )


def _setting(setting: Setting) -> list[str]:
    return [str(number) for number in dataclasses.astuple(setting)]


def _seconds(value: float) -> str:
    """With `z`: a value that rounds to zero has no sign, whatever rounding error it holds."""
    return f"{value:z.3f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    separator = ["---"] * len(heads)
    return [f"| {' | '.join(cells)} |" for cells in (heads, separator, *rows)]


def draw(findings: Findings, path: Path) -> None:
    """Writes a plot with two parts.

    Left: the step time of the model over the number of engines, with the measurements. Right: the step times
    predicted from the other settings over the measured ones.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_model(findings, left)
    _draw_predictions(findings, right)
    figure.savefig(path, dpi=120)


def _draw_model(findings: Findings, axes: "Axes") -> None:
    measured = {m.setting: m.step_s for m in findings.measurements}
    curves = dict.fromkeys((s.learners, s.staleness) for s in measured)
    for number, (learners, staleness) in enumerate(curves):
        settings = [*measured, *findings.others]
        known = [s for s in settings if (s.learners, s.staleness) == (learners, staleness)]
        counts = range(1, max(s.engines for s in known) + 1)
        line = [findings.model.step_times(Setting(n, learners, staleness)).step_s for n in counts]
        label = f"{learners} learners, staleness {staleness}"
        axes.plot(counts, line, f"C{number}-", label=label)
        dots = [s for s in known if s in measured]
        axes.plot([s.engines for s in dots], [measured[s] for s in dots], f"C{number}o")
    axes.set(xlabel="engines", ylabel="s per step (line: model, dot: measured)", ylim=(0, None))
    axes.legend(fontsize="small")


def _draw_predictions(findings: Findings, axes: "Axes") -> None:
    axes.set(xlabel="measured, s per step", ylabel="predicted by the other settings, s per step")
    if not findings.left_out:
        return
    measured = [m.step_s for m in findings.measurements]
    most = 1.1 * max(*measured, *findings.left_out)
    axes.fill_between([0, most], [0, 0.85 * most], [0, 1.15 * most], alpha=0.15, label="within 15 %")
    axes.plot([0, most], [0, most], "k:")
    axes.plot(measured, findings.left_out, "o")
    axes.legend(fontsize="small")
