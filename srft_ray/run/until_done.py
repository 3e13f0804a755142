"""Calls of Ray Train, one after another, until the runs of a series are done, are stopped, or do not come
forward."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray

from srft_ray.errors import RunFailed, cause
from srft_ray.run.placement import Placement
from srft_ray.run.series import Run, events_of, present, where
from srft_ray.run.supervisor import RunSupervisor
from srft_ray.run.trainer import make_trainer


class LearnersFailed(RunFailed):
    """The learners failed once more than trainer.max_failures allows in one call of Ray Train."""


def train_until_done(runs: Sequence[Run], coordinator: Any, placement: Placement) -> str:
    """Trains until the last step of the last run, or until they are asked to stop; returns who asked.

    Learners that left because a machine is taken away start again on the others. Failures count until a run
    has come forward: one that lasts for weeks is not ended by the sum of them.
    """
    most = runs[0].prepared.resolved.config.trainer.max_failures
    idle = 0  # starts in a row that did not bring a run forward
    while True:
        before = _saved(runs)
        try:
            _train(runs, coordinator, placement)
        except LearnersFailed:
            asked_to_stop, _ = ray.get(coordinator.ended.remote())
            if asked_to_stop or _saved(runs) == before:
                raise
            saved = present(runs).saved
            events_of(runs)("learners", f"restarting after {most + 1} failures, with {saved} saved steps")
        stopped, aborted = ray.get(coordinator.ended.remote())
        if aborted:
            raise RunFailed(_of_run(aborted, runs))
        if stopped or all(run.is_done for run in runs):
            return stopped
        came_forward = any(now > then for now, then in zip(_saved(runs), before, strict=True))
        idle = 0 if came_forward else idle + 1
        if idle > most:
            raise RunFailed(f"The learners left {idle} times without a step ({where(runs)}).")


def _saved(runs: Sequence[Run]) -> list[int]:
    return [run.saved for run in runs]


def _of_run(message: str, runs: Sequence[Run]) -> str:
    return f"{present(runs).run_dir.name}: {message}" if len(runs) > 1 else message


def _train(runs: Sequence[Run], coordinator: Any, placement: Placement) -> None:
    """One call of Ray Train, which restarts the learners by itself.

    Raises:
        RunFailed: for a reason that a further call would only repeat.
        LearnersFailed: it gave up.
    """
    config = runs[0].prepared.resolved.config
    trainer = make_trainer(runs, coordinator, placement)
    supervisor = RunSupervisor(
        coordinator, events_of(runs), config.rollout.stall_timeout_s, config.learner.start_timeout_s
    )
    started = time.time()
    try:
        with supervisor:
            trainer.fit()
    except SystemExit:  # Ray Train's own answer to Ctrl-C
        raise KeyboardInterrupt from None
    except Exception as error:
        if supervisor.stopped:
            return
        problem = supervisor.problem or supervisor.engine_problem()
        if problem:
            raise RunFailed(f"{problem} ({where(runs)})") from None
        path = present(runs).run_dir / "failure.txt"
        with suppress(OSError):  # on a full disk
            text = f"{time.time() - started:.0f} s after the start:\n{error}\n"
            path.write_text(text)
        raise LearnersFailed(f"{cause(error)} ({where(runs)}; details in {path})") from error
