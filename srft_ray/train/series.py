"""The runs of a series on one learner, one after another in the same process and process group."""

import gc
from collections.abc import Sequence

import torch

from srft_ray.observe.start import StartClock
from srft_ray.sync.versions import LearnerStart
from srft_ray.train.job import Batches, Job
from srft_ray.train.parity import ParityError
from srft_ray.train.worker import LearnerWorker


def train_series(jobs: Sequence[Job], starts: Sequence[LearnerStart], batches: Batches) -> None:
    """Trains each run to its end; leaves when the learners are asked to.

    Args:
        starts: where runs begin, in the order of training, those that are done left out.
    """
    for start in starts:
        clock = StartClock(is_new=start is starts[0])
        if not _train(jobs[start.run], start, batches, clock):
            return
        collect()


def _train(job: Job, start: LearnerStart, batches: Batches, clock: StartClock) -> bool:
    """Whether the run was trained to its end."""
    worker = LearnerWorker(job, start, batches)
    clock.mark("model")
    clock.write(job.run_dir, f"learner {worker.rank}", worker.step)
    try:
        finished = worker.run()
    except ParityError:
        # The policy is sound, only the engines are not. After a NonFiniteError nothing is saved.
        worker.save(final=True)
        raise
    finally:
        worker.close()
    worker.engine.close()
    return finished


def collect() -> None:
    """Frees the memory of engines that nothing refers to but they themselves."""
    gc.unfreeze()  # an import may have frozen them
    gc.collect()
    gc.freeze()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
