"""Which checkpoints are kept when a new one has been written."""

from collections.abc import Sequence
from pathlib import Path

from srft_ray.config.training import TrainerSection
from srft_ray.observe.journal import read_json_lines
from srft_ray.train.checkpoint import CheckpointStore


def prune(store: CheckpointStore, trainer: TrainerSection) -> None:
    """Removes the checkpoints that the trainer section does not keep; none if keep_checkpoints is not set."""
    if trainer.keep_checkpoints is None:
        return
    steps = store.steps()
    newest = set(steps[-trainer.keep_checkpoints :])
    regular = {step for step in steps if trainer.keep_every and step % trainer.keep_every == 0}
    best = _best(store.run_dir, trainer, steps) if trainer.keep_best else set()
    for step in set(steps) - newest - regular - best:
        store.discard(step)


def _best(run_dir: Path, trainer: TrainerSection, steps: Sequence[int]) -> set[int]:
    """The step with the best score, the newest of several; empty if no step has a score."""
    scores = _scores(run_dir, trainer.keep_best, steps)
    if not scores:
        return set()
    return {max(scores, key=lambda step: (_merit(scores[step], trainer), step))}


def _merit(score: float, trainer: TrainerSection) -> float:
    """The higher the better; equal for all scores within the band."""
    if trainer.keep_best_mode == "max":
        return score
    if trainer.keep_best_mode == "min":
        return -score
    low, high = trainer.keep_best_band
    return -max(low - score, score - high, 0.0)


def _scores(run_dir: Path, name: str, steps: Sequence[int]) -> dict[int, float]:
    """Of the checkpoints that have one.

    The name is that of an evaluation set, for its avg@k, or of another figure of it (`eval/<set>/<figure>`),
    or of a metric, which is taken from the step before.
    """
    scores = {}
    for record in read_json_lines(run_dir / "evaluations.jsonl"):
        figures = {f"eval/{record['set']}/{key}": value for key, value in record.items()}
        figures[record["set"]] = record["avg"]
        if figures.get(name) is not None:
            scores[record["step"]] = figures[name]
    if not scores:
        for record in read_json_lines(run_dir / "metrics.jsonl"):
            if record.get(name) is not None:
                scores[record["step"] + 1] = record[name]
    return {step: scores[step] for step in steps if step in scores}
