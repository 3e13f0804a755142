"""What an algorithm sees, named by stage of life: Completion, Group (one prompt), Batch (tensors), PolicyOutput."""
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Completion:
    """One sequence that answers a prompt: a rollout of the policy or a demonstration.

    Attributes:
        ids: response token ids, the end-of-sequence token included unless the response was truncated.
        logprobs: the engine's log-probability of each id at the sampling temperature, in nats; None for demonstrations.
        policy_version: optimizer steps behind the weights that generated it; -1 for demonstrations.
        verdict: match | mismatch | no_answer | timeout | error, or `given` for demonstrations.
    """
    sample: int
    origin: str  # rollout | demo
    text: str
    ids: Sequence[int]
    logprobs: Sequence[float] | None = None
    policy_version: int = -1
    seed: int = -1
    finish_reason: str = "given"
    reward: float = 1.0
    verdict: str = "given"
    answer: str | None = None
    advantage: float = 0.0


@dataclass
class Group:
    """A prompt with everything the optimizer step `step` learns from it.

    Attributes:
        group_id: the prompt's position in the seeded order; -1 fills a batch and carries nothing.
        num_rollouts: how many rollouts to sample; they join the demonstrations in `completions`.
        dataset: `train`, or the name of the evaluation set.
        started_at, finished_at: when its rollouts were generated, in seconds since the epoch.
    """
    step: int
    group_id: int
    prompt: str
    prompt_ids: Sequence[int]
    reference: str
    metadata: dict[str, Any] = field(default_factory=dict)
    completions: list[Completion] = field(default_factory=list)
    dataset: str = "train"
    num_rollouts: int = 0
    started_at: float = 0.0
    finished_at: float = 0.0

    @property
    def rewards(self) -> list[float]:
        return [c.reward for c in self.completions]

    @property
    def rollouts(self) -> list[Completion]:
        return [c for c in self.completions if c.origin == "rollout"]

    @property
    def demonstrations(self) -> list[Completion]:
        return [c for c in self.completions if c.origin == "demo"]


@dataclass
class Batch:
    """Sequences of a micro-batch; B sequences, T response positions (right-padded).

    Attributes:
        mask_BT: bool, True at response tokens.
        is_demo_B: bool.
        rewards_B, advantages_B: float.
        behavior_logprobs_BT: log-probs of the policy that generated the tokens; 0 for demonstrations and padding.
        step: the optimizer step that this batch belongs to, for schedules.
    """
    mask_BT: Tensor
    is_demo_B: Tensor
    rewards_B: Tensor
    advantages_B: Tensor
    behavior_logprobs_BT: Tensor
    step: int = 0


@dataclass
class PolicyOutput:
    """Of the policy being trained: log-prob of each response token (with gradient), entropy of its distribution (without)."""
    logprobs_BT: Tensor
    entropies_BT: Tensor

    def where(self, mask_BT: Tensor) -> "PolicyOutput":
        """Zeros outside the mask, so that a NaN or an infinity there reaches neither the loss nor a gradient."""
        zero = torch.zeros((), dtype=self.logprobs_BT.dtype, device=self.logprobs_BT.device)
        return PolicyOutput(torch.where(mask_BT, self.logprobs_BT, zero),
                            torch.where(mask_BT, self.entropies_BT, zero.to(self.entropies_BT.dtype)))
