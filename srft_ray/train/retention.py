"""Which checkpoints are kept when a new one has been written."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from srft_ray.config.training import TrainerSection
from srft_ray.observe.journal import EVALUATIONS, METRICS, records_backwards
from srft_ray.train.checkpoint import CheckpointStore


class Retention:
    """Removes the checkpoints that the trainer section does not keep; none if keep_checkpoints is not set."""

    def __init__(self, store: CheckpointStore, trainer: TrainerSection) -> None:
        self.store = store
        self.trainer = trainer
        self.best = BestStep(store.run_dir, trainer)

    def prune(self) -> None:
        """Removes what is not kept now."""
        if self.trainer.keep_checkpoints is None:
            return
        steps = self.store.steps()
        newest = set(steps[-self.trainer.keep_checkpoints :])
        every = self.trainer.keep_every
        regular = {step for step in steps if every and step % every == 0}
        for step in set(steps) - newest - regular - {self.best.of(steps)}:
            self.store.discard(step)


class BestStep:
    """The step that is best by `trainer.keep_best`, from the records of the run."""

    def __init__(self, run_dir: Path, trainer: TrainerSection) -> None:
        self.trainer = trainer
        self.evaluations = Scores(run_dir / EVALUATIONS)
        self.metrics = Scores(run_dir / METRICS)

    def of(self, steps: Sequence[int]) -> int | None:
        """The one of these steps with the best score, the newest of several; None if none has a score."""
        if self.trainer.keep_best is None or not steps:
            return None
        scores = self._scores(self.trainer.keep_best, steps[0])
        scored = [step for step in steps if step in scores]
        return max(scored, key=lambda step: (self._merit(scores[step]), step), default=None)

    def is_patience_over(self) -> bool:
        """Whether the newest `trainer.patience` evaluations were not better than one before them."""
        if self.trainer.patience is None or self.trainer.keep_best is None:
            return False
        scores = self._scores(self.trainer.keep_best, oldest=1)
        # The first of equal ones: those after it were not better.
        best = max(scores, key=lambda step: (self._merit(scores[step]), -step), default=None)
        return best is not None and sum(step > best for step in scores) >= self.trainer.patience

    def _merit(self, score: float) -> float:
        """The higher the better; equal for all scores within the band."""
        if self.trainer.keep_best_mode == "max":
            return score
        if self.trainer.keep_best_mode == "min":
            return -score
        low, high = self.trainer.keep_best_band
        return -max(low - score, score - high, 0.0)

    def _scores(self, name: str, oldest: int) -> dict[int, float]:
        """By step, of `oldest` and later ones at least.

        The name is that of an evaluation set, for its avg@k, or of another figure of it
        (`eval/<set>/<figure>`), or of a metric, which is taken from the step before.
        """

        def of_evaluation(record: dict[str, Any]) -> float | None:
            figures = {f"eval/{record['set']}/{key}": value for key, value in record.items()}
            return record["avg"] if record["set"] == name else figures.get(name)

        self.evaluations.read(oldest, of_evaluation)
        if self.evaluations.found:
            return self.evaluations.found
        self.metrics.read(oldest - 1, lambda record: record.get(name))
        return {step + 1: score for step, score in self.metrics.found.items()}


class Scores:
    """The scores by step in a file of records. What was read before is not read again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[int, float] = {}
        self.last_step = -1

    def read(self, oldest: int, score: Callable[[dict[str, Any]], float | None]) -> None:
        """Adds the scores of new records of steps >= `oldest`."""
        first = max(oldest, self.last_step)
        for _, record in records_backwards(self.path):
            if record["step"] < first:
                break
            self.last_step = max(self.last_step, record["step"])
            value = score(record)
            if value is not None and math.isfinite(value):
                self.found[record["step"]] = value
