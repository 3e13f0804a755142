"""The display of a run: a bar with figures in a terminal, plain lines elsewhere."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from srft_ray.observe.callbacks import Callback
from srft_ray.observe.report import percent
from srft_ray.text import sanitize_text


class Output(Console):
    """A console whose reader may go away (`| head`): the run goes on without it."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Progress(Callback):
    """Shows what it is told of a run. A context manager: the bar is there for the length of the context."""

    def __init__(self, run_dir: Path, steps: int, resume_from: int, warm: bool = False) -> None:
        """
        Args:
            steps: optimizer steps of the whole run.
            resume_from: those that are done.
            warm: whether engines and learners run already.
        """
        self.steps = steps
        self.first = resume_from
        self.console = Output(file=sys.stdout)
        self.bar = _bar(self.console)
        self.task = self.bar.add_task(
            sanitize_text(run_dir.name), total=steps, completed=resume_from, figures=""
        )
        begun = "beginning" if warm else "starting engines and learners"
        begun = f"continuing after step {resume_from}" if resume_from else begun
        self._title = f"{run_dir.name}: {begun}; run directory {run_dir}"

    def __enter__(self) -> "Progress":
        self._print(self._title)
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def on_event(self, event: dict[str, Any]) -> None:
        self._print(f"{event['kind']}: {event['message']}")

    def on_evaluation(self, record: dict[str, Any]) -> None:
        self._print(evaluation_line(record))

    def on_step(self, record: dict[str, Any]) -> None:
        done = record["step"] + 1
        if record.get("steps/skipped_nonfinite"):
            self.bar.update(self.task, completed=done)
            self._print(f"step {done}/{self.steps}  skipped: its update is not finite")
            return
        figures = self._figures(record, self.steps - done)
        self.bar.update(self.task, completed=done, figures=figures)
        if not self.console.is_terminal:
            self._print(f"step {done}/{self.steps}  {figures}")

    def _figures(self, record: dict[str, Any], left: int) -> str:
        """The figures of a step in one line; `left`: steps until the end."""
        # The first step waits for the start of engines and learners, which the later ones do not.
        is_first = record["step"] == self.first
        work_s = record["time/generation"] + record["time/learner"] if is_first else record["time/step"]
        entropy = record["entropy/rollout"] or record["entropy/demo"]
        reward = f"reward {record['reward/mean']:.3f}  " if record["tokens/generated"] else ""
        speed = record["tokens"] / record["time/step"]
        return (
            f"{reward}entropy {entropy:.3f}  loss {record['loss']:+.4f}  "
            f"{speed:,.0f} tokens/s  ETA {work_s * left:.0f} s"
        )

    def _print(self, line: str) -> None:
        """Prints text of the run as it is: without markup, and without control characters."""
        encoding = self.console.encoding
        text = sanitize_text(line).encode(encoding, "replace").decode(encoding)
        with suppress(OSError):  # a terminal that was closed
            self.console.print(Text(text), soft_wrap=True)


def _bar(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        refresh_per_second=4,
        disable=not console.is_terminal,
    )


def evaluation_line(record: dict[str, Any]) -> str:
    """An evaluation in one line."""
    k = record["samples"]
    loss = f"demo_loss {record['demo_loss']:.3f}  " if "demo_loss" in record else ""
    return (
        f"evaluation after step {record['step']}: {record['set']}  avg@{k} {percent(record, 'avg')}  "
        f"pass@{k} {percent(record, 'pass')}  {loss}({record['prompts']} prompts)"
    )
