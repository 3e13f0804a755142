"""Arguments of vLLM's engine that our settings decide."""

from typing import Any

from srft_ray.config.rollout import RolloutSection
from srft_ray.config.schema import ModelSection

MIN_BATCHED_TOKENS = 8192  # of prompts that are read in one step, on CPU
# Arguments of vLLM that other settings decide, or that a run relies on.
OWNED = (
    "data_parallel_size",
    "disable_log_stats",
    "distributed_executor_backend",
    "dtype",
    "gpu_memory_utilization",
    "logprobs_mode",
    "max_model_len",
    "max_num_seqs",
    "model",
    "pipeline_parallel_size",
    "seed",
    "skip_tokenizer_init",
    "tensor_parallel_size",
    "tokenizer",
    "trust_remote_code",
    "worker_extension_cls",
)


def engine_settings(model: ModelSection, rollout: RolloutSection, device: str) -> dict[str, Any]:
    """Those that our settings decide, and those that a run relies on."""
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
    if device != "cpu":
        return {**settings, "gpu_memory_utilization": rollout.gpu_memory_utilization}
    return {
        **settings,
        "enforce_eager": True,
        # Between chunks of a prompt vLLM rewinds a seeded sequence's generator, which fails on CPU.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(MIN_BATCHED_TOKENS, model.max_length),
    }
