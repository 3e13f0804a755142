"""What a finished run leaves for readers: plots, summary.json, and the table of its evaluations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srft_ray.observe.journal import EVALUATIONS, METRICS, read_json_lines, write_whole
from srft_ray.observe.start import begin, latest, newest_starts

Record = dict[str, Any]
Series = dict[str, list[tuple[float, float]]]  # points (step, value) by name

# Name of the picture: label of its vertical axis, and its metrics. A key that ends in '/' stands for all that
# begin with it.
PLOTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "reward": ("mean reward of the rollouts", ("reward/mean",)),
    "entropy": ("policy entropy, nats", ("entropy/rollout", "entropy/demo")),
    "weights": ("mean weight of a term's tokens", ("weight/",)),
    "loss": ("loss of each term", ("loss/",)),
    "length": ("response length, tokens", ("length/mean",)),
}
SHOWN_STARTS = 40  # processes in the picture of a start, at most
FEW_POINTS = 5  # a line with fewer is drawn with markers


def write(run_dir: Path, steps: int, chosen: int, model: str, seconds: float) -> Record:
    """Writes plots and summary.json of a finished run; returns the summary.

    Args:
        steps: that were done.
        chosen: steps behind `model`, the run's model: fewer, if early stopping chose an earlier one.
    """
    records = read_json_lines(run_dir / METRICS)
    evaluations = read_json_lines(run_dir / EVALUATIONS)
    write_plots(run_dir / "plots", records, evaluations)
    _write_start_plot(run_dir)
    # A step without fresh rollouts has no parity.
    parities = [value for r in records if (value := r.get("parity/abs_logprob_diff")) is not None]
    summary = {
        "run": run_dir.name,
        "steps": steps,
        "seconds": round(seconds, 1),
        "model": model,
        "model_step": chosen,
        "tokens": sum(r["tokens"] for r in records),
        "tokens_generated": sum(r["tokens/generated"] for r in records),
        "sequences_timeout_or_error": sum(r["verdict/timeout_or_error"] for r in records),
        "parity_max": max(parities, default=None),
        "final": records[-1] if records else {},
        "evaluations": evaluations,
    }
    write_whole(run_dir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def write_plots(folder: Path, records: Sequence[Record], evaluations: Sequence[Record]) -> None:
    """One picture per entry of PLOTS and of the evaluations, and overview.png with all of them."""
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    panels = {name: (label, _series(records, keys)) for name, (label, keys) in PLOTS.items()}
    if evaluations:
        panels["evaluation"] = ("accuracy avg@k, %", _accuracy(evaluations))
    overview = Figure(figsize=(12, 6.5), layout="constrained")
    places = overview.subplots(2, 3).flat
    for (name, panel), axes in zip(panels.items(), places, strict=False):
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        _draw(figure.add_subplot(), *panel)
        _draw(axes, *panel)
        figure.savefig(folder / f"{name}.png", dpi=120)
    overview.savefig(folder / "overview.png", dpi=120)


def _write_start_plot(run_dir: Path) -> None:
    """A line for each process of the newest start, with what it did when; nothing for older runs.

    Of many processes those that a run waited for: the ones that ended their start last.
    """
    from matplotlib.figure import Figure

    every = newest_starts(run_dir)
    if not every:
        return
    first, starts = begin(every[0]), latest(every, SHOWN_STARTS)
    names = list(dict.fromkeys(name for record in starts for name in record["phases"]))
    figure = Figure(figsize=(8, 1.5 + 0.35 * len(starts)), layout="constrained")
    axes = figure.add_subplot()
    for color, name in enumerate(names):
        shown = [(row, r["phases"][name]) for row, r in enumerate(starts) if name in r["phases"]]
        axes.barh(
            [row for row, _ in shown],
            [end - start for _, (start, end) in shown],
            left=[start - first for _, (start, _) in shown],
            color=f"C{color}",
            label=name,
        )
    left_out = f" ({len(starts)} of {len(every)} processes)" if len(starts) < len(every) else ""
    axes.set(xlabel=f"seconds{left_out}", yticks=range(len(starts)), yticklabels=[r["who"] for r in starts])
    axes.invert_yaxis()
    axes.legend(fontsize="small")
    figure.savefig(run_dir / "plots/start.png", dpi=120)


def _series(records: Sequence[Record], wanted: tuple[str, ...]) -> Series:
    """The metrics that are named, or begin with a key that ends in '/'."""

    def is_wanted(key: str) -> bool:
        return any(key == name or (name.endswith("/") and key.startswith(name)) for name in wanted)

    names = sorted({key for record in records for key in record if is_wanted(key)})
    return {name: [(r["step"], r[name]) for r in records if name in r] for name in names}


def _accuracy(evaluations: Sequence[Record]) -> Series:
    by_set = _by_set(evaluations)
    return {name: [(record["step"], record["avg"]) for record in found] for name, found in by_set.items()}


def _draw(axes: Any, label: str, series: Series) -> None:
    for name, points in series.items():
        marker = "o" if len(points) < FEW_POINTS else None
        # A dollar sign begins a formula in matplotlib's text. A name is never a formula.
        axes.plot(*zip(*points, strict=True), label=name.replace("$", r"\$"), marker=marker)
    axes.set(xlabel="optimizer step", ylabel=label)
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend(fontsize="small")


def table(summary: Record) -> str:
    """The evaluations of each set before training and of the run's model side by side, as Markdown."""
    lines = [
        "| set | before: avg@k | after: avg@k | gain | before: pass@k | after: pass@k |",
        "|---|---|---|---|---|---|",
    ]
    trained = {record["set"]: record for record in evaluations_of_model(summary)}
    for name, found in _by_set(summary["evaluations"]).items():
        first, last = found[0], trained[name]
        cells = [
            f"{name} (k = {last['samples']}, {last['prompts']} prompts)",
            percent(first, "avg"),
            percent(last, "avg"),
            f"{last['avg'] - first['avg']:+z.1f}",
            percent(first, "pass"),
            percent(last, "pass"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def evaluations_of_model(summary: Record) -> list[Record]:
    """Those of the run's model, one for each set."""
    step = summary.get("model_step", summary["steps"])  # summaries before early stopping do not name it
    return [record for record in summary["evaluations"] if record["step"] == step]


def _by_set(evaluations: Sequence[Record]) -> dict[str, list[Record]]:
    """The evaluations of each set, in the order in which the sets appear."""
    found: dict[str, list[Record]] = {}
    for record in evaluations:
        found.setdefault(record["set"], []).append(record)
    return found


def percent(record: Record, key: str) -> str:
    """A figure in percent with its interval."""
    return f"{record[key]:.1f} ± {record[key + '_interval']:.1f} %"
