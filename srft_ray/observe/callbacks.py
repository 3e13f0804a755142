"""What a user's own code is told of a run while it goes on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from srft_ray.errors import require
from srft_ray.observe.evaluation import evaluation_figures

Logger = Callable[[int, Mapping[str, Any]], object]


class Callback:
    """Told of a run by `fit(…, callbacks=[…])`: override what you need; each method does nothing by itself.

    The methods are called in the process that called `fit`, in a thread beside the main one, which looks for
    new records twice a second. Each step, evaluation and checkpoint is told once and in order, also if the
    learners are restarted and repeat steps. A step is told before the evaluation and the checkpoint that
    follow it. A run that is continued tells only what is new. The keys of records: docs/metrics.md.

    An exception in a method stops the run in order: the learners leave with a checkpoint, the callback is
    told nothing more, and `fit` raises the exception. The same call without the error continues the run.
    """

    def on_step(self, record: dict[str, Any]) -> None:
        """An optimizer step was done. `record`: its line of metrics.jsonl."""

    def on_evaluation(self, record: dict[str, Any]) -> None:
        """An evaluation set was sampled. `record`: its line of evaluations.jsonl."""

    def on_checkpoint(self, step: int, path: str) -> None:
        """The checkpoint of `step` optimizer steps is complete; `path` is its directory or address.

        The run may remove it later (trainer.keep_checkpoints).
        """

    def on_event(self, event: dict[str, Any]) -> None:
        """Something happened besides training. `event`: its line of events.jsonl, `kind` and `message`."""


class LoggerCallback(Callback):
    """Passes steps and evaluations on to a logger, a callable that takes (step, values)."""

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def on_step(self, record: dict[str, Any]) -> None:
        self.logger(record["step"], record)

    def on_evaluation(self, record: dict[str, Any]) -> None:
        self.logger(record["step"], evaluation_figures(record))


def as_callbacks(callbacks: Sequence[Callback], loggers: Sequence[Logger]) -> list[Callback]:
    """The callbacks, then the loggers as callbacks.

    Raises:
        UserError: one of them is something else.
    """
    for callback in callbacks:
        require(
            isinstance(callback, Callback),
            f"callbacks holds {callback!r}: give objects of a class that is derived from srft_ray.Callback.",
        )
    for logger in loggers:
        require(
            callable(logger),
            f"loggers holds {logger!r}: give callables that take (step, values); loggers by name stand in "
            "run.loggers of the config.",
        )
    return [*callbacks, *map(LoggerCallback, loggers)]
