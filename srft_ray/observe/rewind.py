"""A run that goes on from a checkpoint: what was recorded after it is removed."""

import os
from pathlib import Path

from srft_ray.observe import evaluation_ledger, ledger
from srft_ray.observe.journal import CHECKPOINTS, EVALUATIONS, METRICS, TIMELINE, end_of_steps


def rewind(run_dir: Path, step: int) -> None:
    """Removes the records and ledger rows of steps >= `step`, which are about to be repeated.

    A checkpoint of `step` steps is the one that the run continues from: it stays.
    """
    for name, first_removed in ((METRICS, step), (EVALUATIONS, step), (CHECKPOINTS, step + 1)):
        path = run_dir / name
        if path.exists():
            os.truncate(path, end_of_steps(path, first_removed))
    for path in (run_dir / TIMELINE).glob("rank-*.jsonl"):
        os.truncate(path, end_of_steps(path, step))
    ledger.truncate(run_dir, step)
    evaluation_ledger.truncate(run_dir, step)
