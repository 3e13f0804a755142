"""The training engine: DeepSpeed ZeRO 0-3 behind `forward`, `backward`, `step`, `state` and `load`.

DeepSpeed averages gradients over ranks; here alone the loss is multiplied by the number of ranks, so that the
caller's losses sum over all micro-batches of all ranks.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from srft_ray.config.training import LearnerSection
from srft_ray.train.batching import MicroBatch, collate
from srft_ray.train.deepspeed_config import deepspeed_config
from srft_ray.train.deepspeed_import import deepspeed, release
from srft_ray.train.deepspeed_state import MOMENTS, STATE, ModelWeights, ParameterState, Prefixed, receive
from srft_ray.train.lora import Adapter
from srft_ray.train.policy_model import PolicyModel
from srft_ray.train.reference import ReferenceModel
from srft_ray.train.weight_gradients import widen_gradients

SECOND_UPDATES = "second|updates"  # in the state: the step count of the second optimizer
CRITIC = "critic|"  # in the state: before the names of the critic's
CRITIC_UPDATES = f"{CRITIC}updates"
FLOAT32_MAX = torch.finfo(torch.float32).max


class DeepSpeedEngine:
    """One rank of the trained policy. Every method is a collective: all ranks call it equally often."""

    def __init__(
        self,
        model: nn.Module,
        learner: LearnerSection,
        dtype: torch.dtype,
        adapter: Adapter | None = None,
    ) -> None:
        """`adapter`: what is trained of the model; None for all of it."""
        self.zero_stage = learner.zero_stage
        if dtype == torch.bfloat16:
            widen_gradients(model)
        # DeepSpeed leaves the optimizer as it is only then: it keeps no gradient norm, and skips no update.
        self.is_plain = learner.zero_stage == 0 and dtype == torch.float32
        self.policy = self._wrapped(model, learner)
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(
            self._trained.values(),
            lr=learner.lr,
            betas=tuple(learner.betas),
            eps=learner.eps,
            weight_decay=learner.weight_decay,
            # One kernel for all numbers of a tensor: on GPUs, and for the large states that CPU memory holds.
            fused=learner.offload_optimizer or torch.cuda.is_available(),
        )
        # Its bfloat16 optimizer prints its memory; errors are raised, not printed.
        with redirect_stdout(StringIO()):
            self.engine, self.optimizer, *_ = deepspeed.initialize(
                model=self.policy, optimizer=optimizer, config=deepspeed_config(learner, dtype)
            )
        if learner.zero_stage == 2:
            # ZeRO 2 reduces gradients in a buffer of the weights' type: one of float32 does not round them.
            self.optimizer._gradient_reduction_buffer_dtype = lambda: torch.float32
        self.device = self.engine.device
        self._state = ParameterState(self.optimizer, self.zero_stage, self.device)
        self.tensors = ModelWeights(model, adapter, self.zero_stage, self.device)
        self.world_size = dist.get_world_size()
        # Their state belongs to that of training.
        self.reference: ReferenceModel | None = None
        self.critic: DeepSpeedEngine | None = None
        self.updates = 0  # Adam's step
        # Moments of updates of another kind, and their step; None before the first of them.
        self._second: list[dict[str, Tensor]] | None = None
        self._second_updates = 0
        self.weight_decay = learner.weight_decay  # of the updates to come

    def close(self) -> None:
        """The engine is not used any more, nor are its reference and critic."""
        for other in filter(None, (self.reference, self.critic)):
            other.close()
        release(self.engine)

    def _wrapped(self, model: nn.Module, learner: LearnerSection) -> nn.Module:
        return PolicyModel(model, learner.logit_chunk_mb)

    def forward(self, *inputs: Any, **options: Any) -> tuple[Any, ...]:
        """(log-probs, entropies) of the scored tokens, each (N,); inputs as of `PolicyModel.forward`."""
        return self.engine(*inputs, **options)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds a micro-batch's gradient; `last` marks the step's last micro-batch on this rank."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self, lr: float) -> float:
        """Applies the update unless its gradient is not finite.

        Returns:
            The gradient norm before clipping, equal on all ranks; not finite if the update was not applied.
            Weights, moments and the count of updates are then as before, and the gradients are gone.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = self.weight_decay
        if self.is_plain:
            return self._plain_step()
        # DeepSpeed computes the norm of the reduced gradients within its step, and skips the update if the
        # norm is not finite: with ZeRO 1-3, and in bfloat16.
        self.engine.step()
        if not self.engine.was_step_applied():
            return math.inf
        self.updates += 1
        return float(self.engine.get_global_grad_norm())

    def _plain_step(self) -> float:
        # Gradients are reduced already, so that every rank finds the same norm.
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        # Adam keeps squares of the gradient in float32, and DeepSpeed's own norms are sums of such squares.
        if norm < FLOAT32_MAX**0.5:
            self.engine.step()
            self.updates += 1
            return norm
        self.engine.zero_grad()
        return math.inf

    def reset_optimizer(self) -> None:
        """Forgets Adam's moments and step count, as if training began here."""
        for state in self._optimizer_states():
            for value in state.values():
                value.zero_()
        self.updates = 0
        if self.critic is not None:
            self.critic.reset_optimizer()

    @contextmanager
    def second_optimizer(self) -> Iterator[None]:
        """Updates within this context have Adam's moments and step count of their own, zeros at first."""
        if self._second is None:
            self._second = [
                {key: torch.zeros_like(value) for key, value in state.items()}
                for state in self._optimizer_states()
            ]
        self._exchange_moments()
        try:
            yield
        finally:
            self._exchange_moments()

    def _exchange_moments(self) -> None:
        for state, second in zip(self._optimizer_states(), self._second, strict=True):
            for key, value in state.items():
                present = value.clone()
                value.copy_(second[key])
                second[key].copy_(present)
        self.updates, self._second_updates = self._second_updates, self.updates

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors by their checkpoint names, tied ones under each name; adapters are merged into them.

        Under ZeRO 3 each tensor is gathered from all ranks when it is asked for: every rank iterates to the
        end, also one that has no use for the tensors.
        """
        return self.tensors.merged()

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """What training needs besides the step, as `parameter|key` for each key of STATE.

        A reference that moved belongs to it. Tensors are whole, in float32 and in memory of their own,
        whatever the ranks and the ZeRO stage. Every rank iterates to the end, as with `weights`.
        """
        if not any(self._optimizer_states()):
            # No update was applied yet: the first one is to find the zeros that it would have made.
            self._create_optimizer_state()
            self._set_updates(0)
        for name, parameter in self._trained.items():
            for key in STATE:
                yield f"{name}|{key}", self._state.get(parameter, key)
        if self._second is not None:
            yield from self._second_state()
        if self.reference is not None:
            yield from self.reference.state()
        if self.critic is not None:
            yield from ((CRITIC + name, value) for name, value in self.critic.state())
            yield CRITIC_UPDATES, torch.tensor([float(self.critic.updates)])

    def _second_state(self) -> Iterator[tuple[str, Tensor]]:
        with self.second_optimizer():
            for name, parameter in self._trained.items():
                for key in MOMENTS:
                    yield f"{name}|second_{key}", self._state.get(parameter, key)
            yield SECOND_UPDATES, torch.tensor([float(self.updates)])

    def load(self, saved: Mapping[str, Tensor], updates: int) -> None:
        """Takes up training after `updates` updates, from tensors as `state` gave them.

        Each tensor is read by one rank and sent to the others, the ranks taking turns.

        Raises:
            RuntimeError: a tensor is missing or has another size.
        """
        self._create_optimizer_state()
        self._load_state(saved, {key: key for key in STATE})
        self._set_updates(updates)
        if SECOND_UPDATES in saved:
            with self.second_optimizer():
                self._load_state(saved, {key: f"second_{key}" for key in MOMENTS})
                self._set_updates(int(saved[SECOND_UPDATES]))
        if self.reference is not None:
            self.reference.load(saved, self.device)
        if self.critic is not None:
            self.critic.load(Prefixed(saved, CRITIC), int(saved[CRITIC_UPDATES]))

    def _load_state(self, saved: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        """Sets what of STATE `names` has, from the tensors `parameter|name`."""
        number = 0
        for name, parameter in self._trained.items():
            numel = getattr(parameter, "ds_numel", parameter.numel())
            for key, saved_key in names.items():
                value = torch.empty(numel, device=self.device)
                receive(value, saved, f"{name}|{saved_key}", number % self.world_size)
                self._state.set(parameter, key, value)
                number += 1

    def _create_optimizer_state(self) -> None:
        """Adam and DeepSpeed make their tensors in their first update: one of rate 0, without tokens."""
        empty = collate([], 0, 0).to(self.device)
        self.backward(self._score(empty).sum() * 0.0, last=True)
        self.step(0.0)

    def _score(self, micro_batch: MicroBatch) -> Tensor:
        """What the model says of the scored tokens, with gradient; (N,)."""
        inputs = (micro_batch.input_ids_BL, micro_batch.rows_N, micro_batch.positions_N)
        return self.forward(*inputs, 1.0, False)[0]

    def _set_updates(self, updates: int) -> None:
        self.updates = updates
        for state in self._optimizer_states():
            state["step"].fill_(updates)

    def _optimizer_states(self) -> Iterator[dict[str, Tensor]]:
        yield from getattr(self.optimizer, "optimizer", self.optimizer).state.values()
