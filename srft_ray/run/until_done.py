"""Calls of Ray Train, one after another, until the run is done, is stopped, or does not come forward."""

import time
from contextlib import suppress
from typing import Any

import ray

from srft_ray.errors import RunFailed, cause
from srft_ray.observe.journal import record_event
from srft_ray.run.placement import Placement
from srft_ray.run.preflight import Prepared
from srft_ray.run.supervisor import RunSupervisor
from srft_ray.run.trainer import make_trainer


class LearnersFailed(RunFailed):
    """The learners failed once more than trainer.max_failures allows in one call of Ray Train."""


def train_until_done(prepared: Prepared, run_id: str, coordinator: Any, placement: Placement) -> str:
    """Trains until the last step, or until the run is asked to stop; returns who asked.

    Learners that left because a machine is taken away start again on the others. Failures count until the
    run has come forward: one that lasts for weeks is not ended by the sum of them.
    """
    store, trainer = prepared.store, prepared.resolved.config.trainer
    idle = 0  # starts in a row that did not bring the run forward
    while True:
        before = store.latest()
        try:
            _train(prepared, run_id, coordinator, placement)
        except LearnersFailed:
            asked_to_stop, _ = ray.get(coordinator.ended.remote())
            if asked_to_stop or store.latest() == before:
                raise
            message = (
                f"restarting after {trainer.max_failures + 1} failures, with {store.latest()} saved steps"
            )
            record_event(prepared.resolved.run_dir, "learners", message)
        stopped, aborted = ray.get(coordinator.ended.remote())
        if aborted:
            raise RunFailed(aborted)
        if stopped or store.finished(trainer):
            return stopped
        idle = 0 if store.latest() > before else idle + 1
        if idle > trainer.max_failures:
            raise RunFailed(f"The learners left {idle} times without a step (after {before} saved steps).")


def _train(prepared: Prepared, run_id: str, coordinator: Any, placement: Placement) -> None:
    """One call of Ray Train, which restarts the learners by itself.

    Raises:
        RunFailed: for a reason that a further call would only repeat.
        LearnersFailed: it gave up.
    """
    config, run_dir, store = prepared.resolved.config, prepared.resolved.run_dir, prepared.store
    trainer = make_trainer(prepared, run_id, coordinator, placement)
    supervisor = RunSupervisor(
        coordinator, run_dir, config.rollout.stall_timeout_s, config.learner.start_timeout_s
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
            raise RunFailed(f"{problem} (after {store.latest()} saved steps)") from None
        with suppress(OSError):  # on a full disk
            text = f"{time.time() - started:.0f} s after the start:\n{error}\n"
            (run_dir / "failure.txt").write_text(text)
        raise LearnersFailed(
            f"{cause(error)} (after {store.latest()} saved steps; details in {run_dir / 'failure.txt'})"
        ) from error
