"""Live progress of a run, read from its metrics: a table in a terminal, plain lines elsewhere."""

import sys
import threading
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from srft_ray.observe.journal import read_json_lines
from srft_ray.observe.report import percent

POLL_INTERVAL_S = 0.5


class Progress:
    """Context manager that follows `metrics.jsonl` and `evaluations.jsonl` in a thread while the run goes on."""

    def __init__(self, run_dir: Path, steps: int, resume_from: int) -> None:
        self.run_dir = run_dir
        self.steps = steps
        self.console = Console(file=sys.stdout)
        self.shown, self.first = resume_from, resume_from
        self.evaluated, self.events = (
            set[tuple[int, str]](),
            len(read_json_lines(self.run_dir / "events.jsonl")),
        )
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
        self.bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            refresh_per_second=4,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(run_dir.name, total=steps, completed=resume_from, figures="")

    def __enter__(self) -> "Progress":
        begun = f"continuing after step {self.first}" if self.first else "starting engines and learners"
        self._print(f"{self.run_dir.name}: {begun}; run directory {self.run_dir}")
        self.bar.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self._show()
        self.bar.stop()

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)

    def _follow(self) -> None:
        while not self._done.wait(POLL_INTERVAL_S):
            self._show()

    def _show(self) -> None:
        for event in read_json_lines(self.run_dir / "events.jsonl")[self.events :]:
            self.events += 1
            self._print(f"{event['kind']}: {event['message']}")
        for record in read_json_lines(self.run_dir / "evaluations.jsonl"):
            if (record["step"], record["set"]) not in self.evaluated:
                self.evaluated.add((record["step"], record["set"]))
                self._print(evaluation_line(record))
        for record in read_json_lines(self.run_dir / "metrics.jsonl"):
            if record["step"] >= self.shown:
                self.shown = record["step"] + 1
                self._show_step(record)

    def _show_step(self, record: dict[str, Any]) -> None:
        work = (
            record["time/step"]
            if self.shown > self.first + 1
            else record["time/generation"] + record["time/learner"]
        )  # not the start-up
        if record.get("steps/skipped_nonfinite"):
            self._print(f"step {self.shown}/{self.steps}  skipped: its update is not finite")
            self.bar.update(self.task, completed=self.shown)
            return
        entropy = record["entropy/rollout"] or record["entropy/demo"]
        reward = f"reward {record['reward/mean']:.3f}  " if record["tokens/generated"] else ""
        figures = (
            f"{reward}entropy {entropy:.3f}  loss {record['loss']:+.4f}  "
            f"{record['tokens'] / record['time/step']:,.0f} tokens/s  ETA {work * (self.steps - self.shown):.0f} s"
        )
        self.bar.update(self.task, completed=self.shown, figures=figures)
        if not self.console.is_terminal:
            self._print(f"step {self.shown}/{self.steps}  {figures}")


def evaluation_line(record: dict[str, Any]) -> str:
    k = record["samples"]
    return (
        f"evaluation after step {record['step']}: {record['set']}  avg@{k} {percent(record, 'avg')}  pass@{k} {percent(record, 'pass')}  "
        f"({record['prompts']} prompts)"
    )
