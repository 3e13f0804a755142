"""The entry point of Ray Train on each learner. Light to import: Ray Train's controller imports it too."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train

from algorithms import Algorithm
from srft_ray.config.schema import ModelSection
from srft_ray.config.training import LearnerSection, RolloutSection, TrainerSection
from srft_ray.data.plan import StreamPlan
from srft_ray.errors import UserError
from srft_ray.observe.loggers import LoggerSettings
from srft_ray.train.checkpoint import CheckpointFailed, CheckpointStore


@dataclass(frozen=True)
class Job:
    """Everything that a learner needs, resolved by the driver.

    Attributes:
        uses_engines: whether weights are published to rollout engines.
        coordinator: handle of the coordinator's actor.
        dtype: name of the number format.
        threads: CPU threads of a learner; None on GPUs.
        is_preempted: whether this learner was told that its machine is taken away.
    """

    run_dir: Path
    seed: int
    model: ModelSection
    rollout: RolloutSection
    learner: LearnerSection
    trainer: TrainerSection
    algorithm: Algorithm
    uses_engines: bool
    plan: StreamPlan
    store: CheckpointStore
    coordinator: Any
    loggers: LoggerSettings
    dtype: str
    threads: int | None
    is_preempted: Callable[[], bool]


def train_loop(settings: dict[str, Any]) -> None:
    """Runs one learner. An error that a restart would only repeat ends the run without one."""
    job: Job = settings["job"]
    # The stream starts first: engines start while this learner imports and loads.
    batches = Batches(job.plan.block)
    from srft_ray.train.learner import ParityError
    from srft_ray.train.nonfinite import NonFiniteError
    from srft_ray.train.worker import LearnerWorker

    try:
        worker = LearnerWorker(job, batches)
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
        ray.get(job.coordinator.left.remote())


class Batches:
    """This learner's blocks; the stream's execution begins at once, not when the first block is asked for."""

    def __init__(self, block: int) -> None:
        shard = ray.train.get_dataset_shard("train")
        self._batches = iter(shard.iter_batches(batch_size=block, prefetch_batches=0, batch_format="numpy"))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: Future[dict[str, Any]] | None = self._thread.submit(next, self._batches)

    def next(self, wait_s: float) -> dict[str, Any] | None:
        """The next block; None if it is not there within `wait_s` seconds."""
        self._next = self._next or self._thread.submit(next, self._batches)
        if not wait([self._next], wait_s).done:
            return None
        block = self._next.result()
        self._next = None
        return block
