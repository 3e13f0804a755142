"""What a finished run leaves for readers: plots, summary.json, and the before/after table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srft_ray.observe.journal import read_json_lines, write_whole

PLOTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "reward": ("mean reward of the rollouts", ("reward/mean",)),
    "entropy": ("policy entropy, nats", ("entropy/rollout", "entropy/demo")),
    "weights": ("mean weight of a term's tokens", ("weight/",)),
    "loss": ("loss of each term", ("loss/",)),
    "length": ("response length, tokens", ("length/mean",)),
}


def write(run_dir: Path, steps: int, model: str, seconds: float) -> dict[str, Any]:
    """Writes plots and summary.json of a finished run; returns the summary."""
    records = read_json_lines(run_dir / "metrics.jsonl")
    evaluations = read_json_lines(run_dir / "evaluations.jsonl")
    write_plots(run_dir / "plots", records, evaluations)
    summary = {
        "run": run_dir.name,
        "steps": steps,
        "seconds": round(seconds, 1),
        "model": model,
        "tokens": sum(r["tokens"] for r in records),
        "tokens_generated": sum(r["tokens/generated"] for r in records),
        "sequences_timeout_or_error": sum(r["verdict/timeout_or_error"] for r in records),
        "parity_max": max((r.get("parity/abs_logprob_diff", 0.0) for r in records), default=0.0),
        "final": records[-1] if records else {},
        "evaluations": evaluations,
    }
    write_whole(run_dir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def write_plots(
    folder: Path, records: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]
) -> None:
    """One picture per entry of PLOTS and of the evaluations, and overview.png with all of them."""
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    panels = {name: (label, _series(records, keys)) for name, (label, keys) in PLOTS.items()}
    if evaluations:
        series = {
            name: [(e["step"], e["avg"]) for e in found] for name, found in _by_set(evaluations).items()
        }
        panels["evaluation"] = ("accuracy avg@k, %", series)
    overview = Figure(figsize=(12, 6.5), layout="constrained")
    for (name, panel), axes in zip(panels.items(), overview.subplots(2, 3).flat, strict=False):
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        _draw(figure.add_subplot(), *panel)
        _draw(axes, *panel)
        figure.savefig(folder / f"{name}.png", dpi=120)
    overview.savefig(folder / "overview.png", dpi=120)


def _series(records: Sequence[dict[str, Any]], keys: tuple[str, ...]) -> dict[str, list[tuple[float, float]]]:
    """The metrics that are named, or begin with a key that ends in '/'."""
    found = sorted(
        {
            k
            for r in records
            for k in r
            if any(k == key or (key.endswith("/") and k.startswith(key)) for key in keys)
        }
    )
    return {name: [(r["step"], r[name]) for r in records if name in r] for name in found}


def _draw(axes: Any, label: str, series: dict[str, list[tuple[float, float]]]) -> None:
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 5 else None)
    axes.set(xlabel="optimizer step", ylabel=label)
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend(fontsize="small")


def table(evaluations: Sequence[dict[str, Any]]) -> str:
    """First and last evaluation of each set side by side, as Markdown."""
    lines = [
        "| set | before: avg@k | after: avg@k | gain | before: pass@k | after: pass@k |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in _by_set(evaluations).items():
        first, last = found[0], found[-1]
        lines.append(
            f"| {name} (k = {last['samples']}, {last['prompts']} prompts) | {percent(first, 'avg')} | {percent(last, 'avg')} | "
            f"{last['avg'] - first['avg']:+z.1f} | {percent(first, 'pass')} | {percent(last, 'pass')} |"
        )
    return "\n".join(lines)


def _by_set(evaluations: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [e for e in evaluations if e["set"] == name]
        for name in dict.fromkeys(e["set"] for e in evaluations)
    }


def percent(record: dict[str, Any], key: str) -> str:
    return f"{record[key]:.1f} ± {record[key + '_interval']:.1f} %"
