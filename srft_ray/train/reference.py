"""The reference model: frozen, or following the policy as an algorithm says."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from srft_ray.config.training import LearnerSection
from srft_ray.train.deepspeed_config import reference_config
from srft_ray.train.deepspeed_import import deepspeed, release
from srft_ray.train.policy_model import PolicyModel

PREFIX = "reference|"  # of its tensors in a checkpoint
STEP = f"{PREFIX}step"  # before which it moved last


class ReferenceModel:
    """Under ZeRO-3 partitioned over the ranks like the policy, else whole on each; without gradient.

    Attributes:
        moved: whether it is no longer the model that it was loaded as, so that checkpoints must hold it.
        moved_before: the step before which it moved last; None: it never did, or the checkpoint does not say.
    """

    def __init__(
        self, model: nn.Module, learner: LearnerSection, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.policy = PolicyModel(model, learner.logit_chunk_mb).requires_grad_(False).to(device)
        self.model: Any = self.policy
        self.device = device
        self.zero_stage = learner.zero_stage
        self.dtype = dtype
        self.moved = False
        self.moved_before: int | None = None
        if learner.zero_stage == 3:
            self.model, *_ = deepspeed.initialize(model=self.model, config=reference_config(learner, dtype))
        self._parameters = dict(self.policy.model.named_parameters())  # tied ones once

    def close(self) -> None:
        """The model is not used any more."""
        if self.zero_stage == 3:
            release(self.model)

    @torch.no_grad()
    def forward(self, *inputs: Any, **options: Any) -> Any:
        """As `PolicyModel.forward`, without gradient."""
        return self.model(*inputs, **options)

    @torch.no_grad()
    def follow(self, weights: Iterable[tuple[str, Tensor]], rate: float, step: int) -> None:
        """Moves every parameter by the share `rate` of its way to the policy's weight of the same name.

        Once before `step`, also if the step was refused afterwards and is repeated from a checkpoint of then.
        A collective under ZeRO-3, as are the methods below.

        Raises:
            ValueError: in bfloat16, a rate below 1, whose small steps would be rounded away.
        """
        if rate < 1 and self.dtype != torch.float32:
            raise ValueError(
                f"the reference cannot follow the policy at a rate of {rate} in {self.dtype}: set "
                "model.dtype=float32, or let it become the policy every few steps"
            )
        if step == self.moved_before:
            return
        self.moved, self.moved_before = True, step
        for name, weight in weights:
            parameter = self._parameters.get(name)
            if parameter is not None:
                self._set(parameter, weight, rate)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Its weights in float32 for a checkpoint, and the step before which it moved last; nothing if it
        never moved."""
        if not self.moved:
            return
        if self.moved_before is not None:
            yield STEP, torch.tensor([float(self.moved_before)])
        for name, parameter in self._parameters.items():
            with self._whole(parameter, writer=None):
                yield PREFIX + name, parameter.detach().to(torch.float32, copy=True)

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor], device: torch.device) -> None:
        """Takes up what `state` gave, if anything."""
        if STEP in saved:
            self.moved_before = int(saved[STEP])
        for name, parameter in self._parameters.items():
            if PREFIX + name not in saved:
                continue
            self.moved = True
            self._set(parameter, saved[PREFIX + name].to(device), 1.0)

    def _set(self, parameter: nn.Parameter, value: Tensor, rate: float) -> None:
        with self._whole(parameter, writer=0):
            if self.zero_stage < 3 or dist.get_rank() == 0:
                target = value.to(parameter.dtype).view_as(parameter)
                parameter.copy_(target if rate == 1 else torch.lerp(parameter, target, rate))

    def _whole(self, parameter: nn.Parameter, writer: int | None) -> AbstractContextManager[Any]:
        """Gathers a partitioned parameter; what rank `writer` changes in it is cut over all ranks again."""
        if self.zero_stage < 3:
            return nullcontext()
        return deepspeed.zero.GatheredParameters([parameter], modifier_rank=writer)
