"""The entry point of Ray Train on each learner. Light to import: Ray Train's controller imports it too."""

from typing import Any

import ray

from srft_ray.errors import UserError
from srft_ray.imports import large_imports
from srft_ray.observe.start import StartClock
from srft_ray.train.checkpoint import CheckpointFailed
from srft_ray.train.job import Batches, Job, blocks_of_this_learner


def train_loop(settings: dict[str, Any]) -> None:
    """Runs one learner. An error that a restart would only repeat ends the run without one."""
    job: Job = settings["job"]
    # The stream starts first: engines start while this learner imports and loads.
    batches = Batches(blocks_of_this_learner(job.plan.block))
    with large_imports():
        from srft_ray.train.nonfinite import NonFiniteError
        from srft_ray.train.parity import ParityError
        from srft_ray.train.worker import LearnerWorker

    clock = StartClock()
    try:
        worker = LearnerWorker(job, batches)
        clock.mark("model")
        clock.write(job.run_dir, f"learner {worker.rank}", worker.step)
        try:
            worker.run()
        except ParityError:
            # The policy is sound, only the engines are not. After a NonFiniteError nothing is saved.
            worker.save(final=True)
            raise
        finally:
            worker.close()
    except (CheckpointFailed, NonFiniteError, ParityError, UserError) as error:
        ray.get(job.coordinator.abort.remote(str(error)))
    finally:
        ray.get(job.coordinator.learners_left.remote())
