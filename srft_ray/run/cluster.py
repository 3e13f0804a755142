"""Ray: connecting to a cluster or starting one here, and whether a run can ever be placed on it."""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

import ray
from ray.exceptions import GetTimeoutError, NodeDiedError, TaskUnschedulableError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from srft_ray.config.schema import Config, bounds, require
from srft_ray.data.stream import engine_gpus
from srft_ray.errors import UserError
from srft_ray.models import resolve_device
from srft_ray.run.preflight import shared_paths

SPARE_CPUS = 2.0  # Ray Data's own tasks
ANSWER_S = 120.0  # for a node to say which paths it sees
WRITTEN = ("run.dir", "trainer.checkpoint_path")
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
    custom: dict[str, float]  # Ray resources by the user's own names

    def __str__(self) -> str:
        others = {"GPUs": self.gpus, **self.custom}
        return f"{self.learners} learners and {self.engines} engines, together {self.cpus:g} CPUs" + "".join(
            f" and {number:g} {name}" for name, number in others.items() if number
        )


def demand(config: Config, engines: bool, device: str) -> Demand:
    learners = bounds(config.learner.num_workers, "learner.num_workers")[0]
    number = bounds(config.rollout.num_engines, "rollout.num_engines")[0] if engines else 0
    cpus = learners * config.learner.cpus_per_worker + number * config.rollout.cpus_per_engine + SPARE_CPUS
    gpus = learners + number * engine_gpus(config) if device == "cuda" else 0.0
    custom = Counter({name: n * learners for name, n in config.learner.resources.items()})
    custom.update({name: n * number for name, n in config.rollout.resources.items()})
    return Demand(learners, number, cpus, gpus, dict(custom))


def learner_resources(config: Config, device: str) -> dict[str, float]:
    learner = config.learner
    return {"CPU": learner.cpus_per_worker, **({"GPU": 1.0} if device == "cuda" else {}), **learner.resources}


def start_ray(config: Config, cpus: float, custom: dict[str, float] | None = None) -> bool:
    """Connects to the Ray of `cluster.address` or RAY_ADDRESS, else starts one here; True if it was started here.

    One that is started here offers the logical CPUs and custom resources that the run asks for: with only the machine's own, learners, engines
    and Ray Data's tasks would wait for each other for ever on a small machine.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_maximum_startup_concurrency", "16")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():
        return False
    variables = {
        key: value for key, value in WORKER_ENVIRONMENT.items() if key not in os.environ
    }  # Ray refuses a job that sets one twice
    quiet = {
        "log_to_driver": bool(os.environ.get("SRFT_RAY_VERBOSE")),
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": variables},
    }
    if cluster_address(config):
        ray.init(address=cluster_address(config), **quiet)
        return False
    ray.init(
        "local",
        num_cpus=config.cluster.num_cpus or max(os.cpu_count() or 1, int(-(-cpus // 1))),
        include_dashboard=False,
        resources=custom,
        **quiet,
    )
    return True


@contextmanager
def placed(config: Config, engines: bool) -> Iterator[tuple[str, int | None]]:
    """Ray with room for the run, for the length of the block: (device, CPU threads of a learner; None on GPUs).

    Raises:
        UserError: CUDA is asked for and absent, the cluster can never place the run, or not all of its nodes see the run's files.
    """
    asked = demand(config, engines, "cpu")
    ours = start_ray(config, asked.cpus, asked.custom)
    try:
        device = resolve_device(config)
        needed = demand(config, engines, device)
        check_placement(needed)
        check_shared(shared_paths(config))
        cores = (
            (os.cpu_count() or 1) // (needed.learners + needed.engines)
            if ours
            else math.ceil(config.learner.cpus_per_worker)
        )
        yield device, max(1, cores) if device == "cpu" else None
    finally:
        if ours:
            ray.shutdown()


def cluster_address(config: Config) -> str | None:
    return config.cluster.address or os.environ.get("RAY_ADDRESS")


def check_placement(needed: Demand) -> None:
    """Raises UserError if the cluster can never place what the run asks for."""
    there = ray.cluster_resources()
    asked = {"CPU": needed.cpus, "GPU": needed.gpus, **needed.custom}
    if any(number > there.get(name, 0.0) for name, number in asked.items()):
        has = " and ".join(
            f"{there.get(name, 0.0):g} {name}{'s' * (name in ('CPU', 'GPU'))}" for name in asked
        )
        raise UserError(
            f"The run asks for {needed}, but the Ray cluster has {has}: lower learner.num_workers or rollout.num_engines (or their "
            "cpus_per_… and resources), or add nodes."
        )


def check_shared(paths: Mapping[str, str]) -> None:
    """Raises UserError if a node that can hold learners or engines does not see one of the paths, or has a folder of its own where the run writes.

    `paths` are absolute, by config key. A job's working directory is no shared storage: every node unpacks what was submitted for
    itself, under one name, so that it has the files but sees nothing that another node writes there.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if len(nodes) < 2:
        return
    with ExitStack() as stack:
        probes = {
            key: stack.enter_context(_marker(path)).name if key in WRITTEN else path
            for key, path in paths.items()
        }
        answers = [(node, _unseen_on(node["NodeID"], list(probes.values()))) for node in nodes]
        for node, answer in answers:
            try:
                unseen = ray.get(answer, timeout=ANSWER_S)
            except GetTimeoutError:
                raise UserError(
                    f"Node {node['NodeManagerAddress']} of the Ray cluster did not say within {ANSWER_S:.0f} s what it sees: end what "
                    "keeps it busy, or take it out."
                ) from None
            except (TaskUnschedulableError, WorkerCrashedError, NodeDiedError):
                continue  # the node has left
            for key, path in paths.items():
                require(
                    probes[key] not in unseen,
                    f"Node {node['NodeManagerAddress']} of the Ray cluster does not see {key}={path} of this node: "
                    "put it on storage that all nodes see at the same path.",
                )


def _marker(folder: str) -> IO[bytes]:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return NamedTemporaryFile(dir=folder, prefix=".seen-by-all-")


def _unseen_on(node_id: str, paths: list[str]) -> ray.ObjectRef:
    """The paths that do not exist on a node."""

    def unseen() -> list[str]:  # nested, so that a node without srft_ray's dependencies can answer too
        return [path for path in paths if not os.path.exists(path)]

    here = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(unseen).options(scheduling_strategy=here).remote()
