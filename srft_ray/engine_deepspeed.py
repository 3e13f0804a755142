"""The training engine: DeepSpeed ZeRO 0-3 behind four verbs. The only file that imports deepspeed.

DeepSpeed averages gradients over ranks; the loss is multiplied by the number of ranks here, and nowhere else, so that
the caller's losses simply sum over all micro-batches of all ranks.
"""
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from srft_ray.config import LearnerSection
from srft_ray.logprobs import PolicyModel


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


class ReferenceModel:
    """A frozen model: under ZeRO-3 partitioned over the ranks like the policy, else whole on each."""

    def __init__(self, model: nn.Module, learner: LearnerSection, dtype: torch.dtype, device: torch.device) -> None:
        self.model: Any = PolicyModel(model, learner.logit_chunk_mb).requires_grad_(False).to(device)
        if learner.zero_stage == 3:
            unused = ("gradient_clipping", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer")
            config = {k: v for k, v in deepspeed_config(learner, dtype).items() if k not in unused} | {"zero_optimization": {"stage": 3}}
            self.model, *_ = deepspeed.initialize(model=self.model, config=config)

    @torch.no_grad()
    def logprobs(self, *inputs: Any) -> Tensor:
        return self.model(*inputs)[0]


class DeepSpeedEngine:
    """One rank of the trained policy."""

    def __init__(self, model: nn.Module, learner: LearnerSection, dtype: torch.dtype) -> None:
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.zero_stage = learner.zero_stage
        self.policy = PolicyModel(model, learner.logit_chunk_mb)
        optimizer = torch.optim.AdamW(self.policy.parameters(), lr=learner.lr, betas=tuple(learner.betas), eps=learner.eps,
                                      weight_decay=learner.weight_decay)
        self.engine, self.optimizer, *_ = deepspeed.initialize(
            model=self.policy, optimizer=optimizer, config=deepspeed_config(learner, dtype))
        self.device = self.engine.device
        self.world_size = dist.get_world_size()

    def forward(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        return self.engine(*inputs)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds a micro-batch's gradient; `last` marks the step's last micro-batch on this rank."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self, lr: float) -> float:
        """Applies the update; returns the gradient norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        own = None
        if self.zero_stage == 0:  # in float32 DeepSpeed keeps no norm then
            own = torch.nn.utils.get_total_norm([p.grad for p in self.policy.parameters() if p.grad is not None])
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return float(own if norm is None else norm)

    def reset_optimizer(self) -> None:
        """Forgets Adam's moments and step count, as if training began here."""
        for state in getattr(self.optimizer, "optimizer", self.optimizer).state.values():
            for value in state.values():
                value.zero_()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors by their checkpoint names, tied ones under each name. A collective: every rank iterates."""
        model = self.policy.model
        if self.zero_stage < 3:
            yield from model.state_dict().items()
            return
        for name, parameter in model.named_parameters(remove_duplicate=False):
            with deepspeed.zero.GatheredParameters([parameter]):
                yield name, parameter.detach()
        persistent = model.state_dict().keys()
        yield from ((name, buffer) for name, buffer in model.named_buffers() if name in persistent)

    def save(self, folder: Path) -> None:
        """Writes this rank's part of model and optimizer state."""
        self.engine.save_checkpoint(str(folder), tag="state")

    def load(self, folder: Path) -> None:
        """Raises RuntimeError if the state does not fit this engine."""
        path, _ = self.engine.load_checkpoint(str(folder), tag="state")
        if path is None:
            raise RuntimeError(f"no training state in {folder}")
