"""Our settings in DeepSpeed's words."""

from typing import Any

import torch

from srft_ray.config.training import LearnerSection


def deepspeed_config(learner: LearnerSection, dtype: torch.dtype) -> dict[str, Any]:
    """Every number that enters the update, from our own settings.

    In bfloat16 there are float32 weights too, and gradients are added up over micro-batches and ranks in
    float32.
    """
    low_precision = dtype == torch.bfloat16
    # DeepSpeed has no bfloat16 optimizer with float32 gradients for ZeRO 0. That of ZeRO 1 makes the same
    # update, with every rank holding only its share of Adam's state.
    stage = max(1, learner.zero_stage) if low_precision else learner.zero_stage
    zero = _zero(stage, dtype)
    if learner.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
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
    return config | {"zero_optimization": _zero(3, dtype)}


def _zero(stage: int, dtype: torch.dtype) -> dict[str, Any]:
    # Otherwise ZeRO 3 rounds the product of a linear layer to bfloat16 before it adds the bias, unlike the
    # other stages and the engines.
    return {"stage": stage, "memory_efficient_linear": dtype == torch.float32}
