"""No update with a number that is infinite or not a number: how it is noticed, and how its cause is named.

The gradient itself tells all ranks. A micro-batch with a non-finite number has its gradient made NaN
(`poisoned`), the reduction of gradients brings the NaN to every rank, and the engine applies no update whose
gradient norm is not finite. Finding the cause takes another forward pass, which only such a step needs.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from algorithms import Algorithm, Batch, Completion, Group, PolicyOutput
from srft_ray.observe.journal import record_event, write_whole
from srft_ray.train.batching import MicroBatch

NAMED = 5  # causes that a message names
LARGEST = 3  # sequences of a rank that are named where only the gradient's norm is not finite

Rows = TypeVar("Rows", Batch, PolicyOutput)


class NonFiniteError(RuntimeError):
    """An update was not applied because a number in it is not finite.

    Attributes:
        found: this rank's causes.
    """

    def __init__(self, message: str, found: Sequence["Cause"] = ()) -> None:
        super().__init__(message)
        self.found = found


@dataclass(frozen=True)
class Cause:
    """What is not finite in a sequence; or, where nothing is, how large its gradient is.

    Attributes:
        name: `reward`, `advantage`, `log-prob`, `engine's log-prob`, `loss of <term>`, `gradient of <term>`.
        value: the number; for a gradient the largest element of the loss's gradient by log-probs.
    """

    group: Group
    completion: Completion
    name: str
    value: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.value)

    def __str__(self) -> str:
        return f"group {self.group.group_id}, sample {self.completion.sample}: {self.name} {self.value:g}"


def all_finite(micro_batch: MicroBatch, policy: PolicyOutput) -> Tensor:
    """Whether what a loss is made of is finite: a bool scalar on the device."""
    values = (
        policy.logprobs_BT,
        micro_batch.batch.advantages_BT,
        micro_batch.batch.rewards_B,
        micro_batch.batch.behavior_logprobs_BT,
    )
    return torch.stack([value.detach().isfinite().all() for value in values]).all()


def poisoned(loss: Tensor, outputs_BT: Tensor, is_finite: Tensor) -> Tensor:
    """The loss as it is, or NaN with a gradient of NaN for every output of the micro-batch; a scalar.

    It adds 0 or NaN times the sum of the outputs, log-probs or values. The loss alone is not enough: tokens
    that no term selects have a gradient of zero whatever the loss is.
    """
    factor = torch.where(is_finite, 0.0, math.nan).to(outputs_BT.dtype)
    return loss + factor * outputs_BT.sum()


def causes(
    algorithm: Algorithm, micro_batch: MicroBatch, policy: PolicyOutput, counts: Mapping[str, Tensor]
) -> list[Cause]:
    """Of each sequence of a micro-batch: the first number that is not finite, else its largest gradient."""
    found = []
    for row, (group, completion) in enumerate(micro_batch.sequences):
        batch = _row(micro_batch.batch, row)
        name, value = _first_nonfinite(batch, _row(policy, row)) or _largest_gradient(
            algorithm, batch, _row(policy, row), counts
        )
        found.append(Cause(group, completion, name, value))
    return found


def most_telling(found: Sequence[Cause]) -> list[Cause]:
    """Those that are not finite; if there are none, those with the largest gradients."""
    nonfinite = [cause for cause in found if not cause.is_finite]
    by_size = sorted(found, key=lambda cause: -abs(cause.value))
    return nonfinite or by_size[:LARGEST]


def describe(step: int, texts: Sequence[str], all_numbers_finite: bool) -> str:
    """The sentence that a run ends with, from the causes of all ranks."""
    where = "only the norm of the gradient; its largest parts are " if all_numbers_finite else ""
    shown = "; ".join(texts[:NAMED])
    more = f"; and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return (
        f"Step {step}: the update is not finite and was not applied: {where}{shown}{more}. The sequences are "
        f"in nonfinite/step-{step}-*.json of the run directory."
    )


def error_of_all_ranks(step: int, found: Sequence[Cause]) -> NonFiniteError:
    """The error that names the sequences at fault, of all ranks; a collective.

    Args:
        found: this rank's causes.
    """
    own = most_telling(found)
    shares: list[list[tuple[str, bool]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(shares, [(str(cause), cause.is_finite) for cause in own])
    # A rank whose numbers are all finite is of interest only if those of every other rank are, too.
    reports = [report for share in shares for report in share]
    all_numbers_finite = all(is_finite for _, is_finite in reports)
    texts = [text for text, is_finite in reports if all_numbers_finite or not is_finite]
    return NonFiniteError(describe(step, texts, all_numbers_finite), own)


def dump(run_dir: Path, step: int, rank: int, found: Sequence[Cause]) -> None:
    """Writes a rank's sequences with what was found in them; a storage that refuses is only reported."""
    path = run_dir / "nonfinite" / f"step-{step}-{rank}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        write_whole(path, json.dumps([_record(step, cause) for cause in found], indent=1))
    except OSError as error:
        record_event(run_dir, "nonfinite", f"{path} cannot be written ({error})")


def _record(step: int, cause: Cause) -> dict[str, Any]:
    """JSON knows no infinity and no NaN: such numbers become text."""
    completion = cause.completion
    return {
        "step": step,
        "group_id": cause.group.group_id,
        "sample": completion.sample,
        "origin": completion.origin,
        "cause": cause.name,
        "value": _as_json(cause.value),
        "reward": _as_json(completion.reward),
        "advantage": _as_json(completion.advantage),
        "verdict": completion.verdict,
        "policy_version": completion.policy_version,
        "prompt": cause.group.prompt,
        "response": completion.text,
        "response_ids": [int(token) for token in completion.ids],
        "logprobs": [_as_json(value) for value in completion.logprobs or ()],
    }


def _as_json(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


def _row(values: Rows, row: int) -> Rows:
    """One sequence of a micro-batch, in the same shapes with B = 1."""
    own: dict[str, Any] = {}
    for item in fields(values):
        value = getattr(values, item.name)
        if isinstance(value, Tensor) and value.ndim > 0:
            own[item.name] = value[row : row + 1]
        if isinstance(value, Mapping):
            own[item.name] = {name: figures[row : row + 1] for name, figures in value.items()}
    return replace(values, **own)


def first_nonfinite_tensor(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with a number that is infinite or not a number."""
    for name, tensor in tensors.items():
        # Both pass a number on that is not one, and take no memory.
        if (
            tensor.is_floating_point()
            and tensor.numel()
            and not torch.stack(tensor.aminmax()).isfinite().all()
        ):
            return name
    return None


def _first_nonfinite(batch: Batch, policy: PolicyOutput) -> tuple[str, float] | None:
    inputs = {
        "reward": batch.rewards_B,
        "advantage": batch.advantages_BT,
        "engine's log-prob": batch.behavior_logprobs_BT,
        "log-prob": policy.logprobs_BT,
    }
    for name, values in inputs.items():
        wrong = values[~values.isfinite()]
        if wrong.numel():
            return name, float(wrong[0])
    return None


def _largest_gradient(
    algorithm: Algorithm, batch: Batch, policy: PolicyOutput, counts: Mapping[str, Tensor]
) -> tuple[str, float]:
    """The largest element of any term's gradient by the log-probs; a term's loss, if that is not finite."""
    largest = ("gradient", 0.0)
    for term in algorithm.terms():
        logprobs_BT = policy.logprobs_BT.detach().clone().requires_grad_()
        with torch.enable_grad():
            total, _ = term.total(batch, replace(policy, logprobs_BT=logprobs_BT))
            loss = total / term.denominator(counts[term.name]).to(total.dtype)
        if not loss.isfinite():
            return f"loss of {term.name}", float(loss)
        if not loss.requires_grad:
            continue
        gradient_BT = torch.autograd.grad(loss, logprobs_BT, allow_unused=True)[0]
        if gradient_BT is None:
            continue
        size = float(gradient_BT.abs().max())
        if not size <= largest[1]:
            largest = (f"gradient of {term.name}", size)
    return largest
