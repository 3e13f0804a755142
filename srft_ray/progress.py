"""Live progress of a run, read from its metrics: a table in a terminal, plain lines elsewhere."""
import sys
import threading
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from srft_ray.config import Config
from srft_ray.metrics import read_json_lines

POLL_S = 0.5


class Progress:
    """Context manager that follows `metrics.jsonl` and `evaluations.jsonl` in a thread while the run goes on."""

    def __init__(self, config: Config, resume_from: int) -> None:
        self.config, self.run_dir, self.console = config, config.run_dir, Console(file=sys.stdout)
        self.shown, self.evaluations, self.first = resume_from, 0, resume_from
        self.started = time.perf_counter()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
        self.bar = Bar(TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
                       TimeElapsedColumn(), console=self.console)

    def __enter__(self) -> "Progress":
        begun = f"continuing after step {self.first}" if self.first else "starting engines and learners"
        self.console.print(f"{self.config.run.name}: {begun}; run directory {self.run_dir}", highlight=False, soft_wrap=True)
        self.live = Live(self.bar, console=self.console, transient=True, refresh_per_second=4) if self.console.is_terminal else None
        self.task = self.bar.add_task(self.config.run.name, total=self.config.trainer.steps, completed=self.first, figures="")
        if self.live:
            self.live.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self._show()
        if self.live:
            self.live.stop()

    def _follow(self) -> None:
        while not self._done.wait(POLL_S):
            self._show()

    def _show(self) -> None:
        for record in read_json_lines(self.run_dir / "evaluations.jsonl")[self.evaluations:]:
            self.evaluations += 1
            self.console.print(evaluation_line(record), highlight=False, soft_wrap=True)
        for record in read_json_lines(self.run_dir / "metrics.jsonl"):
            if record["step"] >= self.shown:
                self.shown = record["step"] + 1
                self._show_step(record)

    def _show_step(self, record: dict[str, Any]) -> None:
        rate = (time.perf_counter() - self.started) / max(1, self.shown - self.first)
        remaining = rate * (self.config.trainer.steps - self.shown)
        figures = step_figures(record, remaining)
        self.bar.update(self.task, completed=self.shown, figures=figures)
        if not self.live:
            self.console.print(f"step {self.shown}/{self.config.trainer.steps}  {figures}", highlight=False, soft_wrap=True)


def step_figures(record: dict[str, Any], remaining_s: float) -> str:
    entropy = record["entropy/rollout"] or record["entropy/demo"]
    return (f"reward {record['reward/mean']:.3f}  entropy {entropy:.3f}  loss {record['loss']:+.4f}  "
            f"{record['tokens'] / record['time/step']:,.0f} tokens/s  ETA {remaining_s:.0f} s")


def evaluation_line(record: dict[str, Any]) -> str:
    k = record["samples"]
    return (f"evaluation after step {record['step']}: {record['set']}  avg@{k} {record['avg']:.1f} ± {record['avg_interval']:.1f} %  "
            f"pass@{k} {record['pass']:.1f} ± {record['pass_interval']:.1f} %  ({record['prompts']} prompts)")
