"""Our settings in DeepSpeed's words, and those of DeepSpeed's that a user may add."""

from typing import Any

import torch

from srft_ray.config.training import LearnerSection
from srft_ray.errors import UserError, first_line, nearest

KEY = "learner.deepspeed"
# What may be added to our own: it decides memory, communication and what is measured, not the update.
ALLOWED = ("aio", "comms_logger", "flops_profiler", "wall_clock_breakdown", "zero_optimization")
ALLOWED_ZERO = (
    "allgather_bucket_size",
    "allgather_partitions",
    "contiguous_gradients",
    "max_live_parameters",
    "max_reuse_distance",
    "model_persistence_threshold",
    "module_granularity_threshold",
    "offload_param",
    "overlap_comm",
    "param_persistence_threshold",
    "prefetch_bucket_size",
    "reduce_bucket_size",
    "reduce_scatter",
    "round_robin_gradients",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_model_persistence_threshold",
    "stage3_module_granularity_threshold",
    "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size",
    "sub_group_size",
    "use_all_reduce_for_fetch_params",
    "zero_hpz_partition_size",
)


def check_deepspeed_settings(given: dict[str, Any]) -> None:
    """Raises UserError for a setting in `learner.deepspeed` that DeepSpeed does not know, that has a wrong
    value, or that decides the update."""
    if not given:
        return
    _check_names(given, ALLOWED, KEY)
    zero = given.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise UserError(f"{KEY}.zero_optimization must be a mapping of settings, not {zero!r}.")
    _check_names(zero, ALLOWED_ZERO, f"{KEY}.zero_optimization")
    # DeepSpeed's own check of types and values; its import takes seconds.
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**zero)
    except ValueError as error:
        problem = " ".join(str(error).splitlines()[1:3]) or first_line(error)
        raise UserError(f"{KEY}.zero_optimization is not what DeepSpeed takes: {problem}.") from error


def _check_names(given: dict[str, Any], allowed: tuple[str, ...], key: str) -> None:
    for name in given:
        if name not in allowed:
            raise UserError(
                f"{key}.{name} cannot be set: {nearest(name, allowed)} What decides the update is set by the "
                "other keys of the learner section."
            )


def deepspeed_config(learner: LearnerSection, dtype: torch.dtype) -> dict[str, Any]:
    """Every number that enters the update, from our own settings.

    In bfloat16 there are float32 weights too, and gradients are added up over micro-batches and ranks in
    float32.
    """
    low_precision = dtype == torch.bfloat16
    # DeepSpeed has no bfloat16 optimizer with float32 gradients for ZeRO 0. That of ZeRO 1 makes the same
    # update, with every rank holding only its share of Adam's state.
    stage = max(1, learner.zero_stage) if low_precision else learner.zero_stage
    zero = _zero(stage, dtype) | learner.deepspeed.get("zero_optimization", {})
    if learner.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        **learner.deepspeed,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": learner.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # A gradient joins its float32 sum as soon as it is there, so that it is not kept twice.
        "bf16": {"enabled": low_precision, "immediate_grad_update": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": 2**31,
    }


def reference_config(learner: LearnerSection, dtype: torch.dtype) -> dict[str, Any]:
    """Of a frozen model that is partitioned like the policy under ZeRO 3; it has no optimizer."""
    config = deepspeed_config(learner, dtype)
    for unused in ("gradient_clipping", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"):
        del config[unused]
    return config | {"zero_optimization": _zero(3, dtype) | learner.deepspeed.get("zero_optimization", {})}


def _zero(stage: int, dtype: torch.dtype) -> dict[str, Any]:
    # Otherwise ZeRO 3 rounds the product of a linear layer to bfloat16 before it adds the bias, unlike the
    # other stages and the engines.
    return {"stage": stage, "memory_efficient_linear": dtype == torch.float32}
