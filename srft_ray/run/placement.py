"""Which resources a run asks for, and on which device it runs."""

from collections import Counter
from dataclasses import dataclass

import ray
import torch

from srft_ray.config.resolve import Resolved
from srft_ray.config.training import LearnerSection, RolloutSection
from srft_ray.errors import UserError, require

SPARE_CPUS = 2.0  # for Ray Data's own tasks


@dataclass(frozen=True)
class Demand:
    """What a run needs at least: processes, logical CPUs and GPUs, and custom Ray resources by name."""

    learners: int
    engines: int
    cpus: float
    gpus: float
    custom: dict[str, float]

    def __str__(self) -> str:
        others = {"GPUs": self.gpus, **self.custom}
        more = "".join(f" and {number:g} {name}" for name, number in others.items() if number)
        return f"{self.learners} learners and {self.engines} engines, together {self.cpus:g} CPUs{more}"


def demand(resolved: Resolved, device: str, engines: bool) -> Demand:
    """What the run needs at least on the device, cpu or cuda; `engines`: whether it samples at all."""
    learner, rollout = resolved.config.learner, resolved.config.rollout
    num_learners = resolved.learners.low
    num_engines = resolved.engines.low if engines else 0
    cpus = num_learners * learner.cpus_per_worker + num_engines * rollout.cpus_per_engine + SPARE_CPUS
    gpus = num_learners + num_engines * gpus_per_engine(rollout) if device == "cuda" else 0.0
    custom = Counter({name: number * num_learners for name, number in learner.resources.items()})
    custom.update({name: number * num_engines for name, number in rollout.resources.items()})
    return Demand(num_learners, num_engines, cpus, gpus, dict(custom))


def gpus_per_engine(rollout: RolloutSection) -> float:
    """GPUs that one engine takes: a share of one, or whole ones under tensor parallelism."""
    parallel = rollout.tensor_parallel
    return rollout.gpus_per_engine if parallel == 1 else float(parallel)


def learner_resources(learner: LearnerSection, device: str) -> dict[str, float]:
    gpu = {"GPU": 1.0} if device == "cuda" else {}
    return {"CPU": learner.cpus_per_worker, **gpu, **learner.resources}


def resolve_device(wanted: str) -> str:
    """cpu or cuda, for run.device; looks at the Ray cluster if this process is connected to one, else at this
    machine.

    Raises:
        UserError: CUDA is asked for and absent.
    """
    if wanted == "cpu":
        return "cpu"
    in_cluster = ray.is_initialized()
    num_gpus = ray.cluster_resources().get("GPU", 0) if in_cluster else torch.cuda.device_count()
    present = num_gpus > 0
    require(
        present or wanted == "auto",
        "run.device=cuda, but no CUDA GPU is visible here or in the Ray cluster: set run.device=cpu or use "
        "a machine that has one.",
    )
    return "cuda" if present else "cpu"


def check_placement(needed: Demand) -> None:
    """Raises UserError if the cluster can never place what the run asks for."""
    present = ray.cluster_resources()
    asked = {"CPU": needed.cpus, "GPU": needed.gpus, **needed.custom}
    if all(number <= present.get(name, 0.0) for name, number in asked.items()):
        return
    plural = {"CPU": "CPUs", "GPU": "GPUs"}
    has = " and ".join(f"{present.get(name, 0.0):g} {plural.get(name, name)}" for name in asked)
    raise UserError(
        f"The run asks for {needed}, but the Ray cluster has {has}: lower learner.num_workers or "
        "rollout.num_engines (or their cpus_per_… and resources), or add nodes."
    )
