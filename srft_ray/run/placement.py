"""Which devices learners and engines get, and which resources the run asks Ray for."""

import math
from collections import Counter
from dataclasses import dataclass

import ray
import torch

from srft_ray.config.resolve import Resolved
from srft_ray.config.rollout import RolloutSection
from srft_ray.config.schema import Config
from srft_ray.config.training import LearnerSection
from srft_ray.errors import UserError, require
from srft_ray.run.node_gpus import ROUNDING, check_gpus

SPARE_CPUS = 2.0  # for Ray Data's own tasks
# Of a GPU that a learner and an engine take turns on. They fit beside each other. Learners are placed first,
# in one placement group, for which Ray adds up the GPUs of a node: with so large a share no node of up to 18
# GPUs seems to have room for more learners than it has GPUs. Each GPU then has room for one engine.
LEARNER_SHARE = 0.95
ENGINE_SHARE = 0.05


@dataclass(frozen=True)
class Demand:
    """What a run needs at least: processes, logical CPUs and GPUs, and custom Ray resources by name."""

    learners: int
    engines: int
    cpus: float
    gpus: float
    custom: dict[str, float]

    def times(self, runs: int) -> "Demand":
        """Of so many runs at the same time."""
        custom = {name: runs * number for name, number in self.custom.items()}
        return Demand(runs * self.learners, runs * self.engines, runs * self.cpus, runs * self.gpus, custom)

    def __str__(self) -> str:
        others = {"GPUs": self.gpus, **self.custom}
        more = "".join(f" and {number:g} {name}" for name, number in others.items() if number)
        return f"{self.learners} learners and {self.engines} engines, together {self.cpus:g} CPUs{more}"


@dataclass(frozen=True)
class Placement:
    """The devices of a run.

    Attributes:
        device: cpu or cuda.
        colocated: whether learners and engines take turns on the same devices, or, on the CPUs of a cluster,
            each on those that it reserves.
        learner_gpus, engine_gpus: GPUs, or the share of one, that a learner and an engine reserve.
        learner_threads, engine_threads: CPU threads of each; None for as many as Ray or the library gives.
    """

    device: str
    colocated: bool = False
    learner_gpus: float = 0.0
    engine_gpus: float = 0.0
    learner_threads: int | None = None
    engine_threads: int | None = None

    @property
    def shares_gpus(self) -> bool:
        """Whether a learner and an engine have one GPU."""
        return self.colocated and self.device == "cuda"

    def __str__(self) -> str:
        if self.colocated and self.device == "cpu" and self.engine_threads is None:
            return "learners and engines take turns, each on the CPUs that it reserves"
        devices = "CPU cores" if self.device == "cpu" else "GPUs"
        how = "take turns on the same" if self.colocated else "have separate"
        return f"learners and engines {how} {devices}"


def choose_placement(
    resolved: Resolved, device: str, engines: bool, gpus: float = 0.0, cores: int | None = None
) -> Placement:
    """The placement that `cluster.placement` names; `auto` takes turns where there are too few devices.

    Args:
        engines: whether the run samples at all.
        gpus: of the cluster.
        cores: of this machine if the run has it for itself, else None.
    """
    config = resolved.config
    colocated = engines and _takes_turns(resolved, device, gpus)
    if device == "cuda":
        return Placement(device, colocated, *_gpus(config, colocated))
    if cores is None:
        return Placement(device, colocated, learner_threads=math.ceil(config.learner.cpus_per_worker))
    learners = resolved.learners.low
    num_engines = resolved.engines.low if engines else 0
    if not colocated:
        return Placement(device, learner_threads=max(1, cores // (learners + num_engines)))
    return Placement(
        device,
        colocated,
        learner_threads=max(1, cores // learners),
        engine_threads=max(1, cores // num_engines),
    )


def _takes_turns(resolved: Resolved, device: str, gpus: float) -> bool:
    config = resolved.config
    wanted = config.cluster.placement
    if wanted != "auto":
        return wanted == "colocated"
    # With staleness engines and learners work at the same time.
    if config.rollout.max_staleness or device == "cpu":
        return False
    learner_gpus, engine_gpus = _gpus(config, colocated=False)
    separate = resolved.learners.low * learner_gpus + resolved.engines.low * engine_gpus
    return separate > gpus and not turns_problem(resolved)


def turns_problem(resolved: Resolved) -> str:
    """Why learners and engines cannot take turns on GPUs; empty if they can."""
    if resolved.config.rollout.tensor_parallel > 1:
        return "rollout.tensor_parallel must be 1"
    if resolved.engines.low > resolved.learners.low:
        return "there must not be more engines than learners"
    return ""


def _gpus(config: Config, colocated: bool) -> tuple[float, float]:
    """GPUs of one learner and of one engine."""
    if colocated:
        return LEARNER_SHARE, ENGINE_SHARE
    return config.learner.gpus_per_worker, gpus_per_engine(config.rollout)


def gpus_per_engine(rollout: RolloutSection) -> float:
    """GPUs that one engine takes where it does not share them with learners: a share of one, or whole ones
    under tensor parallelism."""
    parallel = rollout.tensor_parallel
    return rollout.gpus_per_engine if parallel == 1 else float(parallel)


def recomputes_activations(learner: LearnerSection, placement: Placement) -> bool:
    """By default where an engine takes a part of the learner's GPU."""
    if learner.activation_checkpointing is not None:
        return learner.activation_checkpointing
    return placement.shares_gpus


def demand(resolved: Resolved, placement: Placement, engines: bool) -> Demand:
    """What the run needs at least; `engines`: whether it samples at all."""
    learner, rollout = resolved.config.learner, resolved.config.rollout
    num_learners = resolved.learners.low
    num_engines = resolved.engines.low if engines else 0
    cpus = num_learners * learner.cpus_per_worker + num_engines * rollout.cpus_per_engine + SPARE_CPUS
    gpus = num_learners * placement.learner_gpus + num_engines * placement.engine_gpus
    custom = Counter({name: number * num_learners for name, number in learner.resources.items()})
    custom.update({name: number * num_engines for name, number in rollout.resources.items()})
    return Demand(num_learners, num_engines, cpus, gpus, dict(custom))


def learner_resources(learner: LearnerSection, placement: Placement) -> dict[str, float]:
    gpu = {"GPU": placement.learner_gpus} if placement.learner_gpus else {}
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


def check_placement(resolved: Resolved, placement: Placement, engines: bool) -> None:
    """Raises UserError if the cluster can never place what the run asks for."""
    needed = demand(resolved, placement, engines)
    check_totals(needed)
    if placement.device != "cuda":
        return
    gpus = [node.get("GPU", 0.0) for node in _nodes()]
    problem = turns_problem(resolved) if placement.colocated else ""
    if problem:
        raise UserError(
            f"Learners and engines cannot take turns on {sum(gpus):g} GPUs: {problem}. Change that, or set "
            "cluster.placement=separate."
        )
    engines_take = {"rollout.gpus_per_engine": [placement.engine_gpus] * needed.engines}
    learners_take = {"learner.gpus_per_worker": [placement.learner_gpus] * needed.learners}
    check_gpus(engines_take | learners_take, gpus, str(needed))


def _nodes() -> list[dict[str, float]]:
    """The resources of each living node of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check_totals(needed: Demand) -> None:
    """Raises UserError if the nodes of the cluster have too few resources in all."""
    present: Counter[str] = Counter()
    for node in _nodes():
        present.update(node)
    asked = {"CPU": needed.cpus, "GPU": needed.gpus, **needed.custom}
    if all(number <= present[name] + ROUNDING for name, number in asked.items()):
        return
    plural = {"CPU": "CPUs", "GPU": "GPUs"}
    has = " and ".join(f"{present[name]:g} {plural.get(name, name)}" for name in asked)
    raise UserError(
        f"The run asks for {needed}, but the Ray cluster has {has}: lower learner.num_workers or "
        "rollout.num_engines (or their cpus_per_… and resources), or add nodes."
    )
