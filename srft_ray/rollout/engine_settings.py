"""Arguments and environment of a vLLM engine, from the config."""

import os
from collections.abc import Callable, Collection
from typing import Any

from srft_ray.config.rollout import RolloutSection
from srft_ray.config.schema import ModelSection
from srft_ray.config.training import LoraSection
from srft_ray.errors import nearest, require

MIN_BATCHED_TOKENS = 8192  # of prompts that are read in one step, on CPU
# Arguments of vLLM that other settings decide, or that a run relies on.
OWNED = (
    "data_parallel_size",
    "disable_log_stats",
    "distributed_executor_backend",
    "dtype",
    "enable_lora",
    "gpu_memory_utilization",
    "logprobs_mode",
    "max_lora_rank",
    "max_loras",
    "max_model_len",
    "max_num_seqs",
    "model",
    "pipeline_parallel_size",
    "scheduling_policy",
    "seed",
    "skip_tokenizer_init",
    "tensor_parallel_size",
    "tokenizer",
    "trust_remote_code",
    "worker_extension_cls",
)
GIB = 2**30
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for

# What vLLM may read while it is imported, unless it is set.
IMPORT_ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def check_arguments(given: Collection[str], known: Callable[[], Collection[str]]) -> None:
    """Raises UserError for an argument in `rollout.engine` that is not the user's, or not known to vLLM.

    `known`: gives all arguments of vLLM, which takes seconds; called only if none is refused without them.
    """
    for name in given:
        require(
            name not in OWNED,
            f"rollout.engine.{name} cannot be set: other keys of the model and rollout sections decide it.",
        )
    names = set(known()) if given else set()
    for name in given:
        suggestion = nearest(name, names - set(OWNED))
        require(name in names, f"rollout.engine.{name} is no argument of vLLM: {suggestion}")


def set_environment(rollout: RolloutSection, device: str) -> None:
    """What vLLM reads from the environment; called before vllm is imported."""
    for name, value in IMPORT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    if device == "cpu":
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(rollout.kv_cache_gib)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"


def settle_thread(threads: int | None, device: str) -> None:
    """What PyTorch keeps for each thread, in one that vLLM works in. `threads`: as of `set_threads`."""
    import torch._dynamo.config

    from srft_ray.models import set_threads

    set_threads(threads)
    if device == "cpu":
        # vLLM compiles a function of its sampler, which takes seconds and saves less.
        torch._dynamo.config.disable = True


def engine_settings(
    model: ModelSection, rollout: RolloutSection, device: str, lora: LoraSection | None = None
) -> dict[str, Any]:
    """Arguments of vLLM; with `lora`, of an engine that samples with one adapter."""
    settings: dict[str, Any] = {
        "model": model.path,
        "trust_remote_code": model.trust_remote_code,
        "max_model_len": model.max_length,
        "max_num_seqs": rollout.max_num_seqs,
        "tensor_parallel_size": rollout.tensor_parallel,
        "distributed_executor_backend": "uni" if rollout.tensor_parallel == 1 else "mp",
        # Of the distribution that is sampled from, after temperature and top_p.
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        "worker_extension_cls": "srft_ray.rollout.engine_process.EndWithActor",
    }
    if rollout.in_flight:
        settings["scheduling_policy"] = "priority"  # of the probe (`vllm_engine`)
    if lora:
        settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _room(lora.rank)}
    if device != "cpu":
        return {**settings, "gpu_memory_utilization": rollout.gpu_memory_utilization}
    return {
        **settings,
        "enforce_eager": True,
        # Between chunks of a prompt vLLM rewinds a seeded sequence's generator, which fails on CPU.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(MIN_BATCHED_TOKENS, model.max_length),
    }


def cache_bytes(memory: float, beside_cache: int) -> int:
    """Of an engine's KV cache on a GPU, of which the engine may use `memory` bytes in all."""
    return max(0, int(memory) - beside_cache)


def cache_settings(rollout: RolloutSection, gpu: int, beside_cache: int) -> dict[str, Any]:
    """Arguments of vLLM for an engine that shares its GPU of `gpu` bytes with a learner.

    Without a given size vLLM measures at its start what the whole GPU has in use. A learner that loads at the
    same time would change that, and its memory would be taken from the engine's cache.

    Args:
        beside_cache: bytes that the engine needs for everything but its cache.
    """
    share = rollout.gpu_memory_utilization
    cache = cache_bytes(share * gpu, beside_cache)
    require(
        cache > 0,
        f"An engine has {share:g} of a GPU with {gpu / GIB:.1f} GiB, and needs {beside_cache / GIB:.1f} GiB "
        "beside its cache: raise rollout.gpu_memory_utilization, or let all GPUs have the same memory.",
    )
    # vLLM still refuses to start if less than this share of the GPU is free. It looks when its CUDA context,
    # which belongs to the engine's share, is there already: only the cache is sure to come.
    return {"kv_cache_memory_bytes": cache, "gpu_memory_utilization": cache / gpu}


def _room(rank: int) -> int:
    """The least rank that vLLM has room for; it fills adapters up with zeros."""
    return next(room for room in LORA_RANKS if room >= rank)
