"""When everything of a run happened: spans of time, which learners write and trace viewers show.

Each learner appends a line for each of its steps to `timeline/rank-NNNN.jsonl`, beside the files of `start`.
`write_trace` makes of them a file in the Trace Event Format, which Perfetto and Chrome's about:tracing open.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from algorithms import Group
from srft_ray.observe import journal
from srft_ray.observe.start import starts

TRACE = "timeline.json"
TRACE_STEPS = 1000  # the newest ones that the file at the end of a run has
LEARNERS, ENGINES, DRIVERS = 1, 2, 3  # numbers of the processes that a viewer shows
KINDS = {LEARNERS: "learner", ENGINES: "engine", DRIVERS: "driver"}

Span = tuple[float, float]


class Timeline:
    """What one learner records of its time."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        self._path = run_dir / journal.TIMELINE / f"rank-{rank:04d}.jsonl"
        self._path.parent.mkdir(exist_ok=True)
        # Marks are of the clock that never jumps, a trace's times of the one that all machines share.
        self._offset_s = time.time() - time.perf_counter()

    def step(self, step: int, phases: Mapping[str, Span], groups: Sequence[Group]) -> None:
        """Adds a step: its phases by name, each from and to a time of `time.perf_counter`, and its groups."""
        spans = {name: self._wall(*span) for name, span in phases.items()}
        journal.append_json(self._path, {"step": step, "phases": spans, "blocks": _blocks(groups)})

    @contextmanager
    def phase(self, name: str, step: int) -> Iterator[None]:
        """Adds a phase that belongs to no step, such as a checkpoint after `step` steps."""
        started = time.perf_counter()
        yield
        self.step(step, {name: (started, time.perf_counter())}, [])

    def _wall(self, start: float, end: float) -> list[float]:
        return [round(start + self._offset_s, 6), round(end + self._offset_s, 6)]


def _blocks(groups: Sequence[Group]) -> list[list[Any]]:
    """[engine, when it asked to start, started, ended generation, had all verdicts] of each block."""
    found = {
        (group.engine, group.asked_at, group.started_at, group.finished_at, group.judged_at)
        for group in groups
        if group.engine
    }
    return [list(block) for block in sorted(found)]


def write_trace(run_dir: Path, target: Path, first: int = 0, stop: int | None = None) -> int:
    """Writes the steps from `first` to before `stop` as a trace, unless there are none.

    Returns:
        How many events it has.
    """
    events = []

    def is_wanted(record: dict[str, Any]) -> bool:
        return record["step"] >= first and (stop is None or record["step"] < stop)

    for path in sorted((run_dir / journal.TIMELINE).glob("rank-*.jsonl")):
        rank = int(path.stem.removeprefix("rank-"))
        for record in filter(is_wanted, journal.read_json_lines(path)):
            events += _learner_events(rank, record)
            events += _engine_events(record)
    for record in filter(is_wanted, starts(run_dir)):
        events += _start_events(record)
    if not events:
        return 0
    origin = min(event["ts"] for event in events)
    for event in events:
        event["ts"] = round(event["ts"] - origin, 3)
    content = {"displayTimeUnit": "ms", "traceEvents": [*_names(events), *events]}
    journal.write_whole(target, json.dumps(content))
    return len(events)


def write_newest_trace(run_dir: Path) -> None:
    """Writes the trace of the newest steps of a run that has ended. What storage refuses becomes an event."""
    try:
        last = journal.last_record(run_dir / journal.METRICS)
        first = last["step"] + 1 - TRACE_STEPS if last else 0
        write_trace(run_dir, run_dir / TRACE, first)
    except OSError as error:
        journal.record_event(run_dir, "report", f"{TRACE} could not be written ({error})")


def _learner_events(rank: int, record: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        _event(name, LEARNERS, f"learner {rank}", span, record["step"])
        for name, span in record["phases"].items()
    ]


def _engine_events(record: dict[str, Any]) -> list[dict[str, Any]]:
    """An engine works on several blocks at a time: each has a line of its own in a viewer.

    Responses are judged while others are generated; `judging` is what is left of it after that.
    """
    events = []
    for engine, asked, started, ended, judged in record["blocks"]:
        for name, span in {
            "wait": (asked, started),
            "generation": (started, ended),
            "judging": (ended, judged),
        }.items():
            events.append(_event(name, ENGINES, f"engine {engine}", span, record["step"]))
    return events


def _start_events(record: dict[str, Any]) -> list[dict[str, Any]]:
    [process] = [number for number, kind in KINDS.items() if record["who"].startswith(kind)]
    return [
        _event(f"start: {name}", process, record["who"], span, record["step"])
        for name, span in record["phases"].items()
    ]


def _event(name: str, process: int, thread: str, span: Sequence[float], step: int) -> dict[str, Any]:
    """A complete event; times are in microseconds."""
    start, end = span
    return {
        "name": name,
        "cat": KINDS[process],
        "ph": "X",
        "ts": 1e6 * start,
        "dur": round(1e6 * max(0.0, end - start), 3),
        "pid": process,
        "tid": thread,
        "args": {"step": step},
    }


def _names(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gives lines numbers, in the place of names, and says the names of lines and processes."""
    threads = sorted({(event["pid"], event["tid"]) for event in events})
    numbers = {thread: number for number, thread in enumerate(threads, start=1)}
    for event in events:
        event["tid"] = numbers[event["pid"], event["tid"]]
    lines = [_name("thread_name", process, number, name) for (process, name), number in numbers.items()]
    processes = [_name("process_name", number, 0, f"{kind}s") for number, kind in KINDS.items()]
    return [*processes, *lines]


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
