"""Our settings in DeepSpeed's words."""

from typing import Any

import torch

from srft_ray.config.training import LearnerSection


def deepspeed_config(learner: LearnerSection, dtype: torch.dtype) -> dict[str, Any]:
    """Every number that enters the update, from our own settings."""
    zero: dict[str, Any] = {"stage": learner.zero_stage}
    if learner.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": learner.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "steps_per_print": 2**31,
    }


def reference_config(learner: LearnerSection, dtype: torch.dtype) -> dict[str, Any]:
    """Of a frozen model that is partitioned like the policy under ZeRO 3; it has no optimizer."""
    config = deepspeed_config(learner, dtype)
    for unused in ("gradient_clipping", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"):
        del config[unused]
    return config | {"zero_optimization": {"stage": 3}}
