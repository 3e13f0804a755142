"""What a run leaves: its result, and the summary of a finished one."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srft_ray.observe import report
from srft_ray.run.preflight import Prepared
from srft_ray.train.retention import BestStep


@dataclass(frozen=True)
class Result:
    """A run that ended well.

    Attributes:
        steps: optimizer steps done.
        stopped: why it was asked to stop before its last step; empty if it was not.
        summary: its final figures, those of summary.json; empty if it was stopped.
        model: directory or address of the trained model.
    """

    run_dir: Path
    steps: int
    stopped: str
    summary: dict[str, Any]
    model: str


def result_of(prepared: Prepared, started: float, stopped: str = "") -> Result:
    """The result of a run that has ended.

    Args:
        started: when this command began it, in seconds since the epoch.
    """
    resolved, store = prepared.resolved, prepared.store
    if store.finished(resolved.config.trainer):
        return _finished(prepared, started)
    done = store.latest()
    return Result(resolved.run_dir, done, stopped, {}, store.address(done, "hf"))


def _finished(prepared: Prepared, started: float) -> Result:
    """The result of a complete run; its summary is written if the run ended before it was."""
    resolved, store = prepared.resolved, prepared.store
    trainer, path = resolved.config.trainer, resolved.run_dir / "summary.json"
    steps = chosen = store.latest()
    if trainer.patience is not None:
        chosen = BestStep(resolved.run_dir, trainer).of(store.steps()) or steps
    model = store.address(chosen, "hf")
    figures = json.loads(path.read_text()) if path.exists() else {}
    # Written anew if the run is finished already, and now asked for by another rule of what is best.
    if figures.get("model_step", figures.get("steps")) != chosen:
        figures = report.write(resolved.run_dir, steps, chosen, model, time.time() - started)
    return Result(resolved.run_dir, steps, "", figures, model)
