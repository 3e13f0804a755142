"""The fork server for Ray's workers on this machine: what it imports, and whose it is."""

import os
from contextlib import AbstractContextManager, nullcontext

from srft_ray.config.schema import ClusterSection
from srft_ray.fork_server.client import VARIABLE
from srft_ray.fork_server.ray_start import workers_are_forks
from srft_ray.fork_server.start import ForkServer

# Modules that are imported before Ray, and with it.
ALL = (
    (
        "pandas",
        "pyarrow.compute",
        "pyarrow.dataset",
        "pyarrow.parquet",
        "requests",
        "jsonschema",
        "torch._dynamo.config",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
    ),
    ("ray.data", "ray.train.v2._internal.execution.controller.controller"),
)
ENGINES = (
    ("vllm.engine.arg_utils", "vllm.v1.core.sched.scheduler", "vllm.v1.worker.cpu_model_runner"),
    ("vllm.v1.engine.llm_engine", "vllm.v1.worker.cpu_worker"),  # they import Ray
)
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")

_own: list[ForkServer] = []


def start_fork_server(
    cluster: ClusterSection, engines: bool, variables: dict[str, str], many_jobs: bool = False
) -> None:
    """Has the server begin to import, unless there is one, the config wants none, or this machine has GPUs:
    their libraries do not survive a fork once they are in use.

    Args:
        engines: whether there will be any; only they need vLLM.
        variables: what vLLM reads from the environment when it is imported.
        many_jobs: whether commands follow each other.
    """
    if _own or VARIABLE in os.environ or not cluster.fork_server or any(map(os.path.exists, GPU_DEVICES)):
        return
    before_ray, after_ray = (common + more * engines for common, more in zip(ALL, ENGINES, strict=True))
    _own.append(ForkServer(before_ray, after_ray, variables, many_jobs))


def forks() -> AbstractContextManager[None]:
    """A Ray that is started in the context has forks for workers, if there is a server for them."""
    return workers_are_forks(_own[0].folder) if _own else nullcontext()


def variables_for_commands() -> dict[str, str]:
    """What commands need in their environment to share the server that this process has started."""
    return {VARIABLE: str(_own[0].folder)} if _own else {}


def end_fork_server() -> None:
    """Ends the server that this process has started, if there is one."""
    while _own:
        _own.pop().close()
