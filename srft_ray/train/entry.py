"""The entry point of Ray Train on each learner. Light to import: Ray Train's controller imports it too."""

from collections.abc import Sequence
from typing import Any

import ray

from srft_ray.errors import UserError
from srft_ray.imports import large_imports
from srft_ray.train.checkpoint import CheckpointFailed
from srft_ray.train.job import Batches, Job, blocks_of_this_learner


def train_loop(settings: dict[str, Any]) -> None:
    """Runs one learner. An error that a restart would only repeat ends the series without one."""
    jobs: Sequence[Job] = settings["jobs"]
    coordinator = jobs[0].coordinator
    # The stream starts first: engines start while this learner imports and loads.
    batches = Batches(blocks_of_this_learner(jobs[0].plan.block))
    with large_imports():
        from srft_ray.train.nonfinite import NonFiniteError
        from srft_ray.train.parity import ParityError
        from srft_ray.train.series import train_series

    try:
        train_series(jobs, ray.get(coordinator.learner_starts.remote()), batches)
    except (CheckpointFailed, NonFiniteError, ParityError, UserError) as error:
        ray.get(coordinator.abort.remote(str(error)))
    finally:
        ray.get(coordinator.learners_left.remote())
