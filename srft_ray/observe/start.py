"""When each process of a run started, imported, and loaded: what the time before the first step goes to.

Each process appends a line for each of its starts to a file of its own, `timeline/start-NAME.jsonl`. Light to
import: processes note their start before they import what is large.
"""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from srft_ray import imports
from srft_ray.observe import journal

PATTERN = "start-*.jsonl"


class StartClock:
    """Notes how far this process has come in its start."""

    def __init__(self, is_new: bool = True) -> None:
        """The time until now is that of the process's own start and of its large imports, if there were any
        since the last clock was made.

        `is_new`: whether the process has just started; if not, the time begins now.
        """
        self.spans: dict[str, tuple[float, float]] = {}
        self._mark = time.time()
        if is_new and imports.took:
            began, ended = imports.took[0][0], imports.took[-1][1]
            self.spans = {"process": (_process_start(), began), "imports": (began, ended)}
            self._mark = ended
            imports.took.clear()

    def mark(self, name: str) -> None:
        """What was done since the last mark is called so."""
        now = time.time()
        self.spans[name] = (self._mark, now)
        self._mark = now

    def write(self, run_dir: Path, who: str, step: int) -> None:
        """Adds the start to the run's timeline.

        Args:
            who: the process, such as "engine 0123abcd".
            step: the number of steps that were done before.
        """
        spans = {name: [round(start, 6), round(end, 6)] for name, (start, end) in self.spans.items()}
        folder = run_dir / journal.TIMELINE
        # A start is not given up because storage does not take its times: what the run needs fails by itself.
        with suppress(OSError):
            folder.mkdir(exist_ok=True)
            file = folder / f"start-{who.replace(' ', '-')}.jsonl"
            journal.append_json(file, {"step": step, "who": who, "phases": spans})


def _process_start() -> float:
    """When this process was made, in Unix seconds."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    since_boot_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - since_boot_s + ticks / os.sysconf("SC_CLK_TCK")


def starts(run_dir: Path) -> list[dict[str, Any]]:
    """The starts of all processes of a run: who, before which step, and the phases with their times."""
    files = sorted((run_dir / journal.TIMELINE).glob(PATTERN))
    return [record for file in files for record in journal.read_json_lines(file)]


def newest_starts(run_dir: Path) -> list[dict[str, Any]]:
    """Those since the newest command began, the first one of each process, in their order."""
    found = sorted(starts(run_dir), key=begin)
    commands = [begin(record) for record in found if record["who"] == "driver"]
    first: dict[str, dict[str, Any]] = {}
    for record in found:
        if not commands or begin(record) >= commands[-1]:
            first.setdefault(record["who"], record)
    return list(first.values())


def begin(record: dict[str, Any]) -> float:
    """When the first phase of a start began, in Unix seconds."""
    return min(start for start, _ in record["phases"].values())


def latest(records: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most so many starts, those that ended last, in the same order."""
    by_end = sorted(records, key=lambda record: max(end for _, end in record["phases"].values()))
    kept = {record["who"] for record in by_end[-most:]}
    return [record for record in records if record["who"] in kept]
