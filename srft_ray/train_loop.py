"""The entry point of Ray Train on each learner. Light to import: Ray's controllers import it too."""
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import ray.train

from algorithms import Algorithm
from srft_ray.config import Config
from srft_ray.data.plan import StreamPlan
from srft_ray.errors import UserError

ABORTED = "aborted.txt"


@dataclass(frozen=True)
class Job:
    """Everything a learner needs, resolved by the driver."""
    config: Config
    algorithm: Algorithm
    plan: StreamPlan
    gate: Any
    dtype: str
    threads: int | None


def train_loop(settings: dict[str, Any]) -> None:
    """Runs one learner. An error that a restart would only repeat ends the run without one."""
    job: Job = settings["job"]
    batches = start_stream(job.plan.block)  # engines start while the learner imports and loads
    from srft_ray.learner import ParityError
    from srft_ray.worker import LearnerWorker
    try:
        worker = LearnerWorker(job, batches)
        try:
            worker.run()
        except ParityError:
            worker.save(worker.step)
            raise
        finally:
            worker.close()
    except (ParityError, UserError) as error:
        (job.config.run_dir / ABORTED).write_text(str(error))


def start_stream(block: int) -> Iterator[dict[str, Any]]:
    """This learner's blocks; the stream's execution begins at once, not when the first block is asked for."""
    batches = iter(ray.train.get_dataset_shard("train").iter_batches(batch_size=block, prefetch_batches=0, batch_format="numpy"))
    thread = ThreadPoolExecutor(1)
    first = thread.submit(next, batches)
    thread.shutdown(wait=False)
    return chain((future.result() for future in (first,)), batches)
