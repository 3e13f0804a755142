"""The findings of `srft-ray scale --simulate` as Markdown, JSON and a plot."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srft_ray.commands.scale_report import SETTING_HEADS, table
from srft_ray.commands.simulation.run import SimulatedRun
from srft_ray.commands.simulation.stream import StreamCost, stream_lines
from srft_ray.data.block_size import STREAM_STEPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "simulated"
HEADS = (
    *SETTING_HEADS,
    "blocks per step",
    "stated s per step",
    "s per step",
    "overhead",
    "calls/s",
    "share of a core",
    "answer to admit, ms",
    "answer to heartbeat, ms",
    "publication, ms",
    "admission after publication, ms",
    "MB after step 10",
    "MB at the end",
)
CORE_GOAL, OVERHEAD_GOAL = 0.3, 0.05  # with 1,000 engines and 64 learners
# Calls that are made so often per second, however long a step takes. All others belong to steps.
BY_TIME = ("heartbeat", "leave_requested", "has_share")


def write(runs: Sequence[SimulatedRun], compress: float, costs: Sequence[StreamCost], folder: Path) -> str:
    """Writes simulated.md, simulated.json, simulated.png and simulated.svg; returns the text."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [run.job.plan.blocks_per_step for run in runs]
    text = "\n".join([markdown(runs, compress), *stream_lines(costs, blocks)])
    (folder / f"{NAME}.md").write_text(text + "\n")
    found = [as_json(run, compress) for run in runs]
    content = {"simulated": found, "stream": [dataclasses.asdict(cost) for cost in costs]}
    (folder / f"{NAME}.json").write_text(json.dumps(content, indent=2) + "\n")
    draw(found, folder)
    return text


def as_json(run: SimulatedRun, compress: float) -> dict[str, Any]:
    """The figures of a run: seconds, calls per second, milliseconds, MB and shares as fractions.

    `uncompressed` is calculated for steps that are `compress` times as long: calls of a step are made so many
    times less often, others as often, and the share of the core follows the number of calls.
    """
    job, plan = run.job, run.job.plan
    calls = sum(run.calls_per_s.values())
    uncompressed = uncompressed_calls(run.calls_per_s, compress)
    all_uncompressed = sum(uncompressed.values())
    return {
        **dataclasses.asdict(job.setting),
        "steps": plan.steps,
        "groups_per_step": plan.size(0),
        "groups_per_block": plan.block,
        "blocks_per_step": plan.blocks_per_step,
        "blocks_in_flight_per_engine": job.in_flight,
        "steps_per_stream": plan.stream_blocks // plan.blocks_per_step,
        "compress": compress,
        "stated_s": job.stated_s,
        "step_s": run.step_s,
        "overhead_s": run.overhead_s,
        "calls_per_s": run.calls_per_s | {"all": calls},
        "core_share": run.core_share,
        "latencies_ms": run.latencies_ms,
        "memory_mb": run.memory_mb,
        "uncompressed": {
            "overhead_share": run.overhead_s / (compress * job.stated_s) if job.stated_s else None,
            "calls_per_s": uncompressed | {"all": all_uncompressed},
            "core_share": run.core_share * all_uncompressed / calls,
        },
    }


def uncompressed_calls(calls_per_s: dict[str, float], compress: float) -> dict[str, float]:
    """Calls per second by method, if steps were `compress` times as long."""
    return {name: rate if name in BY_TIME else rate / compress for name, rate in sorted(calls_per_s.items())}


def markdown(runs: Sequence[SimulatedRun], compress: float) -> str:
    """A table of all runs, and what it means."""
    found = [as_json(run, compress) for run in runs]
    lines = [
        "Simulated engines and learners, real coordinator (medians; in brackets the 99th percentile):",
        "",
        *table(HEADS, [_row(figures) for figures in found]),
        "",
        "Overhead: seconds of a step beyond the stated generation and update. The simulated processes run on "
        "this machine too, and their share of overhead and answers is not taken off. Not simulated: Ray "
        "Data, the collectives of learners, the transfer of large weights, and the network.",
    ]
    lines += [_streams(figures) for figures in found if figures["steps_per_stream"] < STREAM_STEPS]
    if compress > 1:
        lines.append(
            f"Steps were {compress:g} times shorter than stated. Calculated for stated steps: "
            + "; ".join(_uncompressed(figures) for figures in found)
            + "."
        )
    return "\n".join(lines)


def _row(figures: dict[str, Any]) -> list[str]:
    memory = figures["memory_mb"]
    latencies = figures["latencies_ms"]
    asked = ("admit", "heartbeat", "publish", "admission after publication")
    return [
        *(str(figures[name]) for name in SETTING_HEADS),
        str(figures["blocks_per_step"]),
        f"{figures['stated_s']:.2f}",
        f"{figures['step_s']:.3f}",
        f"{figures['overhead_s']:.3f} s",
        f"{figures['calls_per_s']['all']:,.0f}",
        f"{figures['core_share']:.1%}",
        *(_latency(latencies.get(name)) for name in asked),
        f"{memory[min(9, len(memory) - 1)]:.1f}",
        f"{memory[-1]:.1f}",
    ]


def _streams(figures: dict[str, Any]) -> str:
    return (
        f"With {figures['engines']} engines a stream holds {figures['steps_per_stream']} steps, after which "
        "engines and learners start anew; the time of these starts is not in the table."
    )


def _latency(found: dict[str, float] | None) -> str:
    return f"{found['median']:.1f} ({found['p99']:.1f})" if found else "–"


def _uncompressed(figures: dict[str, Any]) -> str:
    of_stated = figures["uncompressed"]
    return (
        f"{figures['engines']} engines {of_stated['calls_per_s']['all']:,.0f} calls/s, "
        f"{of_stated['core_share']:.1%} of a core, overhead {of_stated['overhead_share']:.1%}"
    )


def draw(found: Sequence[dict[str, Any]], folder: Path) -> None:
    """Writes a plot with four parts: calls, share of a core, overhead, and memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    (calls, core), (overhead, memory) = figure.subplots(2, 2)
    _draw_calls(found, calls)
    engines = [figures["engines"] for figures in found]
    core.plot(engines, [figures["core_share"] for figures in found], "o-")
    core.axhline(CORE_GOAL, linestyle=":", color="k", label="goal")
    core.set(xlabel="engines", ylabel="share of a core", ylim=(0, None))
    overhead.plot(engines, [figures["uncompressed"]["overhead_share"] for figures in found], "o-")
    overhead.axhline(OVERHEAD_GOAL, linestyle=":", color="k", label="goal")
    overhead.set(xlabel="engines", ylabel="overhead, share of the stated step", ylim=(0, None))
    for figures in found:
        label = f"{figures['engines']} engines, staleness {figures['staleness']}"
        memory.plot(figures["memory_mb"], label=label)
    memory.set(xlabel="step", ylabel="memory of the coordinator, MB")
    for axes in (calls, core, overhead, memory):
        axes.legend(fontsize="small")
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"{NAME}.{suffix}", dpi=120)


def _draw_calls(found: Sequence[dict[str, Any]], axes: "Axes") -> None:
    names = sorted({name for figures in found for name in figures["calls_per_s"]} - {"all"})
    labels = [f"{figures['engines']}\nstaleness {figures['staleness']}" for figures in found]
    places = range(len(found))
    height = [0.0] * len(found)
    for name in names:
        rates = [figures["calls_per_s"].get(name, 0.0) for figures in found]
        axes.bar(places, rates, bottom=height, label=name)
        height = [sum(pair) for pair in zip(height, rates, strict=True)]
    axes.set_xticks(places, labels)
    axes.set(xlabel="engines", ylabel="calls per second at the coordinator")
