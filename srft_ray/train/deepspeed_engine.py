"""The training engine: DeepSpeed ZeRO 0-3 behind four verbs. The only file that imports deepspeed.

DeepSpeed averages gradients over ranks; the loss is multiplied by the number of ranks here, and nowhere else, so that
the caller's losses simply sum over all micro-batches of all ranks.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from srft_ray.config.training import LearnerSection
from srft_ray.train.batching import collate
from srft_ray.train.logprobs import PolicyModel

STATE = ("weight", "exp_avg", "exp_avg_sq")  # of each parameter, in float32


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

    def __init__(
        self, model: nn.Module, learner: LearnerSection, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.model: Any = PolicyModel(model, learner.logit_chunk_mb).requires_grad_(False).to(device)
        if learner.zero_stage == 3:
            unused = ("gradient_clipping", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer")
            config = {k: v for k, v in deepspeed_config(learner, dtype).items() if k not in unused} | {
                "zero_optimization": {"stage": 3}
            }
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
        optimizer = torch.optim.AdamW(
            self.policy.parameters(),
            lr=learner.lr,
            betas=tuple(learner.betas),
            eps=learner.eps,
            weight_decay=learner.weight_decay,
        )
        self.engine, self.optimizer, *_ = deepspeed.initialize(
            model=self.policy, optimizer=optimizer, config=deepspeed_config(learner, dtype)
        )
        self.device = self.engine.device
        self.world_size = dist.get_world_size()
        self.updates = 0  # Adam's step

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
            own = torch.nn.utils.get_total_norm(
                [p.grad for p in self.policy.parameters() if p.grad is not None]
            )
        self.engine.step()
        self.updates += 1
        norm = self.engine.get_global_grad_norm()
        return float(own if norm is None else norm)

    def reset_optimizer(self) -> None:
        """Forgets Adam's moments and step count, as if training began here."""
        for state in self._optimizer_states():
            for value in state.values():
                value.zero_()
        self.updates = 0

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

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """What training needs besides the step: of every parameter `name|key`, whole and in float32, whatever the ranks and
        ZeRO stage. A collective: every rank iterates."""
        for name, parameter in self.policy.model.named_parameters():
            for key in STATE:
                yield f"{name}|{key}", self._get(parameter, key)

    def load(self, saved: Mapping[str, Tensor], updates: int) -> None:
        """Takes up training after `updates` updates, from tensors as `state` gave them. A collective: each tensor is read by
        one rank and sent to the others.

        Raises:
            RuntimeError: a tensor is missing or has another size.
        """
        self._create_optimizer_state()
        number = 0
        for name, parameter in self.policy.model.named_parameters():
            for key in STATE:
                self._set(
                    parameter,
                    key,
                    self._receive(saved, f"{name}|{key}", _whole_size(parameter), number % self.world_size),
                )
                number += 1
        self._set_updates(updates)

    def _receive(self, saved: Mapping[str, Tensor], name: str, numel: int, reader: int) -> Tensor:
        value = torch.empty(numel, device=self.device)
        if dist.get_rank() == reader:
            if name not in saved or saved[name].numel() != numel:
                raise RuntimeError(f"the checkpoint has no {name} of {numel} numbers: it is of another model")
            value.copy_(saved[name])
        dist.broadcast(value, reader)
        return value

    def _create_optimizer_state(self) -> None:
        """An update with rate 0 and an empty micro-batch: Adam and DeepSpeed make their tensors in their first."""
        empty = collate([], 0, 0).to(self.device)
        logprobs_N, _ = self.forward(empty.input_ids_BL, empty.rows_N, empty.positions_N, 1.0, False)
        self.backward(logprobs_N.sum() * 0.0, last=True)
        self.step(0.0)

    def _set_updates(self, updates: int) -> None:
        self.updates = updates
        for state in self._optimizer_states():
            state["step"].fill_(updates)

    def _optimizer_states(self) -> Iterator[dict[str, Tensor]]:
        yield from getattr(self.optimizer, "optimizer", self.optimizer).state.values()

    def _get(self, parameter: nn.Parameter, key: str) -> Tensor:
        if not self._mixed(parameter):
            return parameter if key == "weight" else self.optimizer.state[parameter][key]
        return (
            safe_get_full_fp32_param(parameter)
            if key == "weight"
            else safe_get_full_optimizer_state(parameter, key)
        )

    def _set(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        if key == "weight":
            gathered = [parameter] if self.zero_stage == 3 else []
            with (
                torch.no_grad(),
                deepspeed.zero.GatheredParameters(gathered, modifier_rank=0 if gathered else None),
            ):
                if not gathered or dist.get_rank() == 0:
                    parameter.copy_(value.view_as(parameter))
        if self.zero_stage == 3:
            own = torch.zeros(parameter.ds_tensor.numel(), device=self.device)
            mine = value[dist.get_rank() * own.numel() :][: own.numel()]
            own[: mine.numel()] = mine
            set_weight, set_state = safe_set_local_fp32_param, safe_set_local_optimizer_state
            set_weight(parameter, own) if key == "weight" else set_state(parameter, own, key)
        elif self._mixed(parameter):
            value = value.view_as(parameter)
            safe_set_full_fp32_param(parameter, value) if key == "weight" else safe_set_full_optimizer_state(
                parameter, value, key
            )
        elif key != "weight":
            self.optimizer.state[parameter][key].copy_(value.view_as(parameter))

    def _mixed(self, parameter: nn.Parameter) -> bool:
        """Whether DeepSpeed keeps the float32 weights and moments apart from the parameter (not with ZeRO 0 in float32)."""
        return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _whole_size(parameter: nn.Parameter) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())
