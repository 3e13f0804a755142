"""What DeepSpeed keeps of a model, whole: its tensors, and weights and moments of a parameter in float32."""

from collections.abc import Iterator, Mapping
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import PartitionedParamStatus
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
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
        """One of STATE, in memory of its own."""
        is_weight = key == "weight"
        if self.zero_stage == 3:
            part_P = (
                safe_get_local_fp32_param(parameter)
                if is_weight
                else safe_get_local_optimizer_state(parameter, key)
            )
            return gathered(part_P.to(self.device), parameter)
        if self._mixed(parameter):
            if is_weight:
                return safe_get_full_fp32_param(parameter)
            return safe_get_full_optimizer_state(parameter, key)
        return (parameter if is_weight else self.optimizer.state[parameter][key]).detach().clone()

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


@torch.no_grad()
def gathered(part_P: Tensor, parameter: nn.Parameter) -> Tensor:
    """What all ranks hold of a parameter under ZeRO 3, put together; a collective.

    Args:
        part_P: this rank's part: of the parameter, or of what Adam keeps of it.
    """
    whole_N = part_P.new_empty(part_P.numel() * dist.get_world_size())
    parts = whole_N.chunk(dist.get_world_size())
    parts[dist.get_rank()].copy_(part_P)
    if dist.get_backend() == "gloo":
        # Its all-gather would need the memory of the whole a second time.
        for rank, rank_part_P in enumerate(parts):
            dist.broadcast(rank_part_P, rank)
    else:
        dist.all_gather_into_tensor(whole_N, parts[dist.get_rank()])
    return whole_N[: parameter.ds_numel].view(parameter.ds_shape)


def receive(value_N: Tensor, saved: Mapping[str, Tensor], name: str, reader: int) -> None:
    """Sets a tensor on all ranks to one of a checkpoint, which rank `reader` reads; a collective.

    Raises:
        RuntimeError: on that rank, if the tensor is missing or has another size.
    """
    if dist.get_rank() == reader:
        numel = value_N.numel()
        if name not in saved or saved[name].numel() != numel:
            raise RuntimeError(f"the checkpoint has no {name} of {numel} numbers: it is of another model")
        value_N.copy_(saved[name])
    dist.broadcast(value_N, reader)


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

    Under ZeRO 3 each tensor is gathered from all ranks when it is asked for, into memory of its own.
    """

    def __init__(
        self, model: nn.Module, adapter: Adapter | None, zero_stage: int, device: torch.device
    ) -> None:
        self.model = model
        self.adapter = adapter
        self.zero_stage = zero_stage
        self.device = device

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors by their checkpoint names, tied ones under each name; adapters merged into them."""
        return self.adapter.merged(self._tensors(), self._whole) if self.adapter else self._tensors()

    def changed(self) -> Iterator[tuple[str, Tensor]]:
        """What training changes: all tensors, or those of the adapter."""
        return self.adapter.tensors(self._whole) if self.adapter else self._tensors()

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
            yield name, self._whole(parameter)
        saved_names = self.model.state_dict().keys()
        for name, buffer in self.model.named_buffers():
            if name in saved_names:
                yield name, buffer

    def _whole(self, parameter: Any) -> Tensor:
        if self.zero_stage < 3:
            return parameter.detach()
        if parameter.ds_tensor.status == PartitionedParamStatus.AVAILABLE:
            return gathered(parameter.ds_tensor.to(self.device), parameter)
        # A part that lies on a disk (`offload_param` to nvme) is read by DeepSpeed.
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
