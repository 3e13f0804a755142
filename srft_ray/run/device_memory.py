"""What memory the devices of a run have."""

import os
from collections.abc import Callable

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ANSWER_TIMEOUT_S = 60.0  # for a node to say what memory its GPUs have


def device_memory(device: str, in_cluster: bool) -> float | None:
    """Bytes of the largest GPU, or of this machine if it alone runs everything on CPU; None if unknown."""
    if device == "cuda":
        return _gpu_memory_of_cluster() if ray.is_initialized() else gpu_memory_here()
    return None if in_cluster else float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def gpu_memory_here() -> float | None:
    """Bytes of the largest GPU of this machine; None if it has none that is known."""
    return _question()()


def _question() -> Callable[[], float | None]:
    def answer() -> float | None:  # nested, so that a node can answer without importing this package
        import subprocess

        command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
            return max(float(line) * 2**20 for line in said.split())
        except (OSError, ValueError, subprocess.SubprocessError):
            return None

    return answer


def _gpu_memory_of_cluster() -> float | None:
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    ask = ray.remote(num_cpus=0, max_retries=0)(_question())
    answers = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node in nodes
    ]
    try:
        found = ray.get(answers, timeout=ANSWER_TIMEOUT_S)
    except (GetTimeoutError, RayError):
        return None
    # A node that does not know may have the largest.
    return None if None in found else max(found, default=None)
