"""What DeepSpeed keeps of a model, whole: its tensors, and weights and moments of a parameter in float32."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
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

from srft_ray.train.lora import Adapter

MOMENTS = ("exp_avg", "exp_avg_sq")  # of each parameter, in float32
STATE = ("weight", *MOMENTS)


class ParameterState:
    """Reads and writes the state of one parameter at a time. Both methods are collectives."""

    def __init__(self, optimizer: Any, zero_stage: int, device: torch.device) -> None:
        self.optimizer = optimizer
        self.zero_stage = zero_stage
        self.device = device

    def get(self, parameter: nn.Parameter, key: str) -> Tensor:
        """One of STATE."""
        if self._mixed(parameter):
            if key == "weight":
                return safe_get_full_fp32_param(parameter)
            return safe_get_full_optimizer_state(parameter, key)
        return parameter if key == "weight" else self.optimizer.state[parameter][key]

    def set(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        """Sets one whole tensor, given flat and in float32 on every rank."""
        # The parameter that the forward pass reads; then the float32 copy that Adam updates, if there is one.
        if key == "weight":
            self._set_weight(parameter, value)
        if self.zero_stage == 3:
            self._set_partition(parameter, key, value)
        elif self._mixed(parameter):
            self._set_whole(parameter, key, value.view_as(parameter))
        elif key != "weight":
            self.optimizer.state[parameter][key].copy_(value.view_as(parameter))

    @torch.no_grad()
    def _set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        if self.zero_stage < 3:
            parameter.copy_(value.view_as(parameter))
            return
        # Rank 0 writes the gathered parameter; the context then cuts its value over all ranks again.
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if dist.get_rank() == 0:
                parameter.copy_(value.view_as(parameter))

    def _set_whole(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        if key == "weight":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)

    def _set_partition(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        """This rank's part under ZeRO 3: parts are equally long, the last one padded with zeros."""
        part = torch.zeros(parameter.ds_tensor.numel(), device=self.device)
        first = dist.get_rank() * part.numel()
        own = value[first : first + part.numel()]
        part[: own.numel()] = own
        if key == "weight":
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, key)

    def _mixed(self, parameter: nn.Parameter) -> bool:
        """Whether DeepSpeed keeps float32 weights and moments of its own: not in float32 with ZeRO 0."""
        return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


class Prefixed:
    """Those tensors of a checkpoint whose names begin with a prefix, by the rest of their names."""

    def __init__(self, saved: Mapping[str, Tensor], prefix: str) -> None:
        self.saved = saved
        self.prefix = prefix

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.saved

    def __getitem__(self, name: str) -> Tensor:
        return self.saved[self.prefix + name]


class ModelWeights:
    """The model's tensors. All methods are collectives: every rank iterates to the end.

    Under ZeRO 3 each tensor is gathered from all ranks when it is asked for.
    """

    def __init__(self, model: nn.Module, adapter: Adapter | None, zero_stage: int) -> None:
        self.model = model
        self.adapter = adapter
        self.zero_stage = zero_stage

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors by their checkpoint names, tied ones under each name; adapters merged into them."""
        return self.adapter.merged(self._tensors(), self._gathered) if self.adapter else self._tensors()

    def changed(self) -> Iterator[tuple[str, Tensor]]:
        """What training changes: all tensors, or those of the adapter."""
        return self.adapter.tensors(self._gathered) if self.adapter else self._tensors()

    def adapter_files(self) -> dict[str, bytes]:
        """The adapter as peft loads it, by file name in a checkpoint, on rank 0."""
        if self.adapter is None:
            return {}
        copies = [(name, tensor.cpu().clone()) for name, tensor in self.changed()]
        return self.adapter.files(copies) if dist.get_rank() == 0 else {}

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        if self.zero_stage < 3:
            yield from self.model.state_dict().items()
            return
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            with self._gathered([parameter]):
                yield name, parameter.detach()
        saved_names = self.model.state_dict().keys()
        for name, buffer in self.model.named_buffers():
            if name in saved_names:
                yield name, buffer

    def _gathered(self, parameters: list[Tensor]) -> AbstractContextManager[Any]:
        return deepspeed.zero.GatheredParameters(parameters) if self.zero_stage == 3 else nullcontext()
