"""The critic: a second model that learns the values of states, and gives tokens their advantages."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from algorithms import Algorithm, PolicyOutput, selections
from srft_ray.config.training import LearnerSection
from srft_ray.train.batching import MicroBatch
from srft_ray.train.deepspeed_engine import DeepSpeedEngine
from srft_ray.train.loss import add_loss, global_counts
from srft_ray.train.nonfinite import NonFiniteError, poisoned
from srft_ray.train.step_metrics import Sums, all_reduce


def value_layers(model: Any) -> nn.ModuleDict:
    """The decoder of a causal language model, and a new scalar head of zeros."""
    decoder = model.get_decoder()
    weight = next(decoder.parameters())
    head = nn.Linear(model.config.get_text_config().hidden_size, 1, bias=False)
    nn.init.zeros_(head.weight)
    return nn.ModuleDict({"decoder": decoder, "head": head.to(weight.device, weight.dtype)})


class ValueModel(nn.Module):
    """Gives the value of the state before each scored token."""

    def __init__(self, layers: nn.ModuleDict) -> None:
        super().__init__()
        self.model = layers
        self._gives_hidden_states = False

    def forward(
        self,
        input_ids_BL: Tensor,
        rows_N: Tensor,
        positions_N: Tensor,
        position_ids_BL: Tensor | None = None,
    ) -> tuple[Tensor]:
        """The value before token `positions_N` of row `rows_N`; float32, (N,). Inputs are those of
        `PolicyModel.forward`."""
        positions = {} if position_ids_BL is None else {"position_ids": position_ids_BL}
        decoder, head = self.model["decoder"], self.model["head"]
        hidden_BLH = decoder(input_ids=input_ids_BL, use_cache=False, **positions).last_hidden_state
        hidden_NH = hidden_BLH[rows_N, positions_N - 1]
        if self._gives_hidden_states:
            return (hidden_NH.float(),)
        return (head(hidden_NH)[:, 0].float(),)

    @contextmanager
    def hidden_states(self) -> Iterator[None]:
        """Within it, the decoder's hidden states come instead of values; (N, H)."""
        self._gives_hidden_states = True
        try:
            yield
        finally:
            self._gives_hidden_states = False


class CriticEngine(DeepSpeedEngine):
    """The engine of a critic, which is made of `value_layers`."""

    def _wrapped(self, model: nn.Module, learner: LearnerSection) -> nn.Module:
        return ValueModel(model)

    def _score(self, micro_batch: MicroBatch) -> Tensor:
        """The values of the states before the scored tokens, with gradient; (N,)."""
        inputs = (micro_batch.input_ids_BL, micro_batch.rows_N, micro_batch.positions_N)
        return self.forward(*inputs, position_ids_BL=micro_batch.position_ids_BL)[0]


class Critic:
    """Gives tokens their advantages before the first update of a step, and learns with each update.

    All methods are collectives.
    """

    def __init__(self, engine: CriticEngine, lr: float, policy: DeepSpeedEngine) -> None:
        """`policy`: to whose state that of the critic is added."""
        self.engine = policy.critic = engine
        self.lr = lr
        self._step = 0
        self._metrics: dict[str, float] = {}
        self._updates: list[dict[str, float]] = []

    @torch.no_grad()
    def begin(
        self, algorithm: Algorithm, micro_batches: Sequence[MicroBatch], step: int, weight_decay: float
    ) -> None:
        """Sets values, returns and advantages in all micro-batches of the step."""
        self._step, self._updates = step, []
        self.engine.weight_decay = weight_decay
        sums = Sums(self.engine.device)
        for micro_batch in micro_batches:
            batch = micro_batch.batch
            values_BT = self._values(micro_batch)
            advantages_BT = algorithm.token_advantages(batch, values_BT)
            batch.old_values_BT = values_BT
            batch.token_advantages_BT = advantages_BT
            batch.returns_BT = advantages_BT + values_BT
            mask_BT = selections.rollouts(batch)
            sums["tokens"] += mask_BT.sum()
            _add_moments(sums, "advantage", advantages_BT[mask_BT])
            _add_moments(sums, "return", batch.returns_BT[mask_BT])
        totals = all_reduce(sums)
        mean, deviation = _moments(totals, "advantage")
        for micro_batch in micro_batches:
            batch = micro_batch.batch
            batch.token_advantages_BT = algorithm.rescaled(batch.token_advantages_BT, mean, deviation)
        self._metrics = _value_metrics(totals)

    def update(self, algorithm: Algorithm, micro_batches: Sequence[MicroBatch]) -> None:
        """Makes one update of the critic.

        Raises:
            NonFiniteError: the update was not applied.
        """
        regression = algorithm.critic()
        counts = global_counts(regression, micro_batches)
        sums = Sums(self.engine.device)
        for index, micro_batch in enumerate(micro_batches):
            values_BT = self._values(micro_batch)
            zeros_BT = torch.zeros_like(values_BT)
            output = PolicyOutput(zeros_BT, zeros_BT, values_BT=values_BT)
            loss = add_loss(regression, micro_batch, output, counts, sums)
            last = index == len(micro_batches) - 1
            self.engine.backward(poisoned(loss, values_BT, loss.detach().isfinite()), last)
        grad_norm = self.engine.step(self.lr)
        if not math.isfinite(grad_norm):
            raise NonFiniteError(
                f"Step {self._step}: the update of the critic is not finite and was not applied."
            )
        self._updates.append({**_term_metrics(regression, all_reduce(sums)), "grad_norm": grad_norm})

    def metrics(self) -> dict[str, float]:
        """Of the step, equal on all ranks; those of its updates are averaged."""
        averages = {
            f"critic/{name}": sum(update[name] for update in self._updates) / len(self._updates)
            for name in self._updates[0]
        }
        return {**self._metrics, **averages}

    def _values(self, micro_batch: MicroBatch) -> Tensor:
        """Of the states before each response token, (B, T)."""
        inputs = (micro_batch.input_ids_BL, micro_batch.rows_N, micro_batch.positions_N)
        values_N, *_ = self.engine.forward(*inputs, position_ids_BL=micro_batch.position_ids_BL)
        return micro_batch.align(values_N)


class NoCritic:
    """Stands for the critic of an algorithm that has none."""

    def begin(self, *inputs: Any) -> None:
        pass

    def update(self, *inputs: Any) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return {}


def _add_moments(sums: Sums, name: str, values: Tensor) -> None:
    sums[f"{name}/sum"] += values.double().sum()
    sums[f"{name}/squares"] += values.double().square().sum()


def _moments(totals: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation over all tokens of the step, float64 scalars."""
    tokens = totals["tokens"].clamp(min=1)
    mean = totals[f"{name}/sum"] / tokens
    squares = (totals[f"{name}/squares"] - tokens * mean.square()).clamp(min=0)
    return mean, (squares / (tokens - 1).clamp(min=1)).sqrt()


def _term_metrics(regression: Algorithm, totals: Mapping[str, Tensor]) -> dict[str, float]:
    """The loss of an update, and the means of what its terms measure of each token."""
    found = {"loss": sum(float(totals[f"loss/{term.name}"]) for term in regression.terms())}
    for term in regression.terms():
        selected = totals[f"selected/{term.name}"].clamp(min=1)
        found |= {name: float(totals[f"metrics/{name}/{term.name}"] / selected) for name in term.metrics}
    return found


def _value_metrics(totals: Mapping[str, Tensor]) -> dict[str, float]:
    """What the advantages leave of the returns' variance is what the values do not explain."""
    mean_advantage, deviation = _moments(totals, "advantage")
    mean_return, spread = _moments(totals, "return")
    unexplained = (deviation / spread) ** 2 if spread > 0 else torch.ones(())
    return {
        "critic/value_mean": float(mean_return - mean_advantage),
        "critic/return_mean": float(mean_return),
        "critic/explained_variance": 1 - float(unexplained),
    }
