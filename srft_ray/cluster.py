"""Ray: connecting to a cluster or starting one here, and whether a run can ever be placed on it."""
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from srft_ray.config import Config, bounds
from srft_ray.data.pipeline import engine_gpus
from srft_ray.errors import UserError
from srft_ray.models import resolve_device

SPARE_CPUS = 2.0  # Ray Data's own tasks
WORKER_ENVIRONMENT = {
    "RAY_DATA_METADATA_PREFETCH_ON_THREAD": "0",  # with it a result is seen one turn of Ray Data's loop (0.1 s) later
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Demand:
    """What a run needs at least."""
    learners: int
    engines: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.learners} learners and {self.engines} engines, together {self.cpus:g} CPUs{gpus}"


def demand(config: Config, engines: bool, device: str) -> Demand:
    learners = bounds(config.learner.num_workers, "learner.num_workers")[0]
    number = bounds(config.rollout.num_engines, "rollout.num_engines")[0] if engines else 0
    cpus = learners * config.learner.cpus_per_worker + number * config.rollout.cpus_per_engine + SPARE_CPUS
    gpus = learners + number * engine_gpus(config) if device == "cuda" else 0.0
    return Demand(learners, number, cpus, gpus)


def start_ray(config: Config, cpus: float) -> bool:
    """Connects to the Ray of `cluster.address` or RAY_ADDRESS, else starts one here; True if it was started here.

    One that is started here offers the logical CPUs that the run asks for: with only the machine's own, learners, engines
    and Ray Data's tasks would wait for each other for ever on a small machine.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_maximum_startup_concurrency", "16")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": bool(os.environ.get("SRFT_RAY_VERBOSE")), "logging_level": logging.ERROR,
             "runtime_env": {"env_vars": WORKER_ENVIRONMENT}}
    if cluster_address(config):
        ray.init(address=cluster_address(config), **quiet)
        return False
    ray.init("local", num_cpus=config.cluster.num_cpus or max(os.cpu_count() or 1, int(-(-cpus // 1))), include_dashboard=False, **quiet)
    return True


@contextmanager
def placed(config: Config, engines: bool) -> Iterator[tuple[str, int | None]]:
    """Ray with room for the run, for the length of the block: (device, CPU threads of a learner; None on GPUs).

    Raises:
        UserError: CUDA is asked for and absent, or the cluster can never place the run.
    """
    ours = start_ray(config, demand(config, engines, "cpu").cpus)
    try:
        device = resolve_device(config)
        needed = demand(config, engines, device)
        check_placement(needed)
        cores = (os.cpu_count() or 1) // (needed.learners + needed.engines) if ours else math.ceil(config.learner.cpus_per_worker)
        yield device, max(1, cores) if device == "cpu" else None
    finally:
        if ours:
            ray.shutdown()


def cluster_address(config: Config) -> str | None:
    return config.cluster.address or os.environ.get("RAY_ADDRESS")


def check_placement(needed: Demand) -> None:
    """Raises UserError if the cluster can never place what the run asks for."""
    there = ray.cluster_resources()
    cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
    if needed.cpus > cpus or needed.gpus > gpus:
        raise UserError(f"The run asks for {needed}, but the Ray cluster has {cpus:g} CPUs and {gpus:g} GPUs: lower "
                        "learner.num_workers or rollout.num_engines (or their cpus_per_…), or add nodes.")
