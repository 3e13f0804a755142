"""The entry point of Ray Train on each learner. Light to import: Ray's controllers import it too."""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import ray
import ray.train

from algorithms import Algorithm
from srft_ray.config.schema import Config
from srft_ray.data.plan import StreamPlan
from srft_ray.errors import UserError
from srft_ray.train.checkpoint import CheckpointFailed, CheckpointStore


@dataclass(frozen=True)
class Job:
    """Everything a learner needs, resolved by the driver."""

    config: Config
    store: CheckpointStore
    algorithm: Algorithm
    plan: StreamPlan
    coordinator: Any
    dtype: str
    threads: int | None


def train_loop(settings: dict[str, Any]) -> None:
    """Runs one learner. An error that a restart would only repeat ends the run without one."""
    job: Job = settings["job"]
    batches = Batches(job.plan.block)  # engines start while the learner imports and loads
    from srft_ray.train.learner import ParityError
    from srft_ray.train.worker import LearnerWorker

    try:
        worker = LearnerWorker(job, batches)
        try:
            worker.run()
        except ParityError:
            worker.save(final=True)
            raise
        finally:
            worker.close()
    except (CheckpointFailed, ParityError, UserError) as error:
        ray.get(job.coordinator.abort.remote(str(error)))
    finally:
        ray.get(job.coordinator.left.remote())


class Batches:
    """This learner's blocks; the stream's execution begins at once, not when the first block is asked for."""

    def __init__(self, block: int) -> None:
        self._batches = iter(
            ray.train.get_dataset_shard("train").iter_batches(
                batch_size=block, prefetch_batches=0, batch_format="numpy"
            )
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: Future[dict[str, Any]] | None = self._thread.submit(next, self._batches)

    def next(self, wait_s: float) -> dict[str, Any] | None:
        """The next block; None if it is not there within `wait_s`."""
        self._next = self._next or self._thread.submit(next, self._batches)
        if not wait([self._next], wait_s).done:
            return None
        block, self._next = self._next.result(), None
        return block
