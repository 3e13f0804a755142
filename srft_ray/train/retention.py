"""Which checkpoints are kept when a new one has been written."""

from collections.abc import Callable
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
        self.evaluations = Scores(store.run_dir / EVALUATIONS)
        self.metrics = Scores(store.run_dir / METRICS)

    def prune(self) -> None:
        """Removes what is not kept now."""
        if self.trainer.keep_checkpoints is None:
            return
        steps = self.store.steps()
        newest = set(steps[-self.trainer.keep_checkpoints :])
        every = self.trainer.keep_every
        regular = {step for step in steps if every and step % every == 0}
        for step in set(steps) - newest - regular - self._best(steps):
            self.store.discard(step)

    def _best(self, steps: list[int]) -> set[int]:
        """The step with the best score, the newest of several; empty if no step has a score."""
        name = self.trainer.keep_best
        if name is None or not steps:
            return set()
        scores = self._scores(name, steps)
        return {max(scores, key=lambda step: (self._merit(scores[step]), step))} if scores else set()

    def _merit(self, score: float) -> float:
        """The higher the better; equal for all scores within the band."""
        if self.trainer.keep_best_mode == "max":
            return score
        if self.trainer.keep_best_mode == "min":
            return -score
        low, high = self.trainer.keep_best_band
        return -max(low - score, score - high, 0.0)

    def _scores(self, name: str, steps: list[int]) -> dict[int, float]:
        """Of the checkpoints that have one.

        The name is that of an evaluation set, for its avg@k, or of another figure of it
        (`eval/<set>/<figure>`), or of a metric, which is taken from the step before.
        """

        def of_evaluation(record: dict[str, Any]) -> float | None:
            figures = {f"eval/{record['set']}/{key}": value for key, value in record.items()}
            return record["avg"] if record["set"] == name else figures.get(name)

        self.evaluations.read(steps[0], of_evaluation)
        scores = self.evaluations.found
        if not scores:
            self.metrics.read(steps[0] - 1, lambda record: record.get(name))
            scores = {step + 1: score for step, score in self.metrics.found.items()}
        return {step: scores[step] for step in steps if step in scores}


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
            if value is not None:
                self.found[record["step"]] = value
