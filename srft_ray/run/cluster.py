"""Ray: connecting to a cluster, or starting one on this machine."""

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from srft_ray.config.resolve import Resolved
from srft_ray.config.schema import ClusterSection, Config
from srft_ray.errors import UserError, first_line
from srft_ray.rollout.engine_settings import IMPORT_ENVIRONMENT
from srft_ray.run.placement import Placement, check_placement, choose_placement, demand, resolve_device
from srft_ray.run.preloading import end_fork_server, forks, start_fork_server
from srft_ray.run.shared_storage import check_shared, shared_paths
from srft_ray.run.transport_backend import with_backend
from srft_ray.sync.node_copy import remove_leftovers

ANSWER_S = 10.0  # for a cluster to take a connection
WORKER_ENVIRONMENT = {
    # With it a result is seen one turn of Ray Data's loop later (`data.loop`).
    "RAY_DATA_METADATA_PREFETCH_ON_THREAD": "0",
    # Without it a thread of an actor that ends would start a whole new Ray by its next call.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def cluster_address(cluster: ClusterSection) -> str | None:
    """Address of the cluster to connect to; None if Ray is to be started on this machine."""
    return cluster.address or os.environ.get("RAY_ADDRESS")


def start_ray(
    cluster: ClusterSection,
    cpus: float,
    custom: dict[str, float] | None = None,
    engines: bool = True,
    many_jobs: bool = False,
) -> bool:
    """Connects to the cluster, or starts Ray on this machine; True if it was started here.

    `many_jobs`: whether commands follow each other there.

    A Ray that is started here offers the logical CPUs and custom resources that the run asks for: with only
    the machine's own, learners, engines and Ray Data's tasks would wait for each other for ever on a small
    machine.
    """
    if ray.is_initialized():
        return False
    prepare_environment(cluster, engines, many_jobs)
    options = {"log_to_driver": bool(os.environ.get("SRFT_RAY_VERBOSE")), "logging_level": logging.ERROR}
    address = cluster_address(cluster)
    if address:
        # Ray refuses a job that sets a variable of its environment again.
        variables = {key: value for key, value in WORKER_ENVIRONMENT.items() if key not in os.environ}
        ray.init(address=address, runtime_env={"env_vars": variables} if variables else None, **options)
        return False
    num_cpus = cluster.num_cpus or max(os.cpu_count() or 1, math.ceil(cpus))
    options |= {"num_cpus": num_cpus, "resources": custom, "include_dashboard": False}
    with forks():
        ray.init("local", **options)
    return True


def _check_that_it_answers(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "/" in host:  # `auto`, or the address of a proxy
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except OSError as error:
        raise UserError(
            f"No Ray cluster answers at {address} (cluster.address or RAY_ADDRESS): {first_line(error)}. "
            "Check `ray status` on its head node, and the port."
        ) from error


def prepare_environment(cluster: ClusterSection, engines: bool, many_jobs: bool = False) -> None:
    """What a Ray that is started on this machine is to find, and takes time: called early, and again.

    Args:
        engines: whether there will be any.
        many_jobs: whether commands follow each other there.

    Raises:
        UserError: the cluster that is to be used does not answer.
    """
    # Actors that ask for no CPU are many here, and Ray would warn of them on the standard output.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = cluster_address(cluster)
    if address and not ray.is_initialized():
        _check_that_it_answers(address)
    if address or ray.is_initialized():
        return
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    start_fork_server(cluster, engines, IMPORT_ENVIRONMENT, many_jobs)


def stop_ray() -> None:
    """Ends the Ray that this process has started, and removes what its processes left that were killed."""
    ray.shutdown()
    forget_environment()
    remove_leftovers()


def forget_environment() -> None:
    """Ends what `prepare_environment` has started, unless there is a Ray now that it is for."""
    if not ray.is_initialized():
        end_fork_server()


def automatic_choices(config: Config, placement: Placement) -> list[str]:
    """What was chosen for the run and may surprise its user, as sentences."""
    choices = []
    if config.run.device == "auto" and placement.device == "cpu" and cluster_address(config.cluster):
        choices.append(
            "the Ray cluster has no GPU now: the run is on CPU; set run.device=cuda if GPUs will come"
        )
    if placement.colocated and config.cluster.placement == "auto":
        choices.append(f"there are too few GPUs for both, so that {placement}")
    return choices


@contextmanager
def placed(resolved: Resolved, engines: bool) -> Iterator[Placement]:
    """Ray with room for the run, for the length of the context, and the devices that the run gets.

    Args:
        engines: whether the run samples at all.

    Raises:
        UserError: CUDA is asked for and absent, the cluster can never place the run, or not all of its nodes
            see the
            run's files.
    """
    config = resolved.config
    asked = demand(resolved, Placement("cpu"), engines)
    ours = start_ray(config.cluster, asked.cpus, asked.custom, engines)
    try:
        device = resolve_device(config.run.device)
        gpus = ray.cluster_resources().get("GPU", 0.0)
        placement = choose_placement(resolved, device, engines, gpus, os.cpu_count() if ours else None)
        check_placement(resolved, placement, engines)
        with_backend(config.rollout, placement)
        check_shared(shared_paths(config))
        yield placement
    finally:
        if ours:
            stop_ray()
