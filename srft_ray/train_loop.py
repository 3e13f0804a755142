"""The entry point of Ray Train on each learner. Light to import: Ray's controllers import it too."""
from dataclasses import dataclass
from typing import Any

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
    from srft_ray.learner import ParityError
    from srft_ray.worker import LearnerWorker
    job: Job = settings["job"]
    try:
        worker = LearnerWorker(job)
        try:
            worker.run()
        except ParityError:
            worker.save(worker.step)
            raise
        finally:
            worker.close()
    except (ParityError, UserError) as error:
        (job.config.run_dir / ABORTED).write_text(str(error))
