"""What an algorithm sees, named by stage of life: Completion, Group (one prompt), Batch (tensors), PolicyOutput."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
        prefix: how many leading ids come from the group's demonstration; the engine has no log-prob of them (0 there).
        trained: whether it enters the update (`Algorithm.trains_on`).
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
    prefix: int = 0
    trained: bool = True


@dataclass
class Group:
    """A prompt with everything the optimizer step `step` learns from it.

    Attributes:
        group_id: the prompt's position in the seeded order; -1 fills a batch and carries nothing.
        num_rollouts: how many rollouts to sample; they join the demonstrations in `completions`.
        max_new_tokens: the longest response that may be sampled.
        dataset: `train`, or the name of the evaluation set.
        started_at, finished_at: when its rollouts were generated, in seconds since the epoch.
        attempt: how many groups without signal were discarded before this one took their place.
        discarded_tokens: tokens that were sampled for those.
        engine: the engine that sampled its rollouts; empty if nothing was sampled.
        weights_fingerprint: of the weights that the engine held.
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
    max_new_tokens: int = 0
    started_at: float = 0.0
    finished_at: float = 0.0
    attempt: int = 0
    discarded_tokens: int = 0
    engine: str = ""
    weights_fingerprint: str = ""

    @property
    def rewards(self) -> list[float]:
        return [c.reward for c in self.completions]

    @property
    def rollouts(self) -> list[Completion]:
        return [c for c in self.completions if c.origin == "rollout"]

    @property
    def demonstrations(self) -> list[Completion]:
        return [c for c in self.completions if c.origin == "demo"]

    @property
    def trained(self) -> list[Completion]:
        return [c for c in self.completions if c.trained]

    def pass_rate(self, correct_above: float = 0.5) -> float:
        """Share of the rollouts whose reward is above the threshold."""
        return sum(c.reward > correct_above for c in self.rollouts) / max(1, len(self.rollouts))


@dataclass
class Batch:
    """Sequences of a micro-batch as data; B sequences, T response positions (right-padded).

    Attributes:
        mask_BT: bool, True at response tokens.
        is_demo_B: bool.
        rewards_B, advantages_B: float.
        behavior_logprobs_BT: log-probs of the policy that generated the tokens; 0 for demonstrations, prefixes and padding.
        step: optimizer steps since the beginning of the stage, for schedules.
        max_new_tokens: the longest response that may be sampled.
        is_prefix_BT: bool, True at tokens of a rollout that come from a demonstration; None: there are none.
    """

    mask_BT: Tensor
    is_demo_B: Tensor
    rewards_B: Tensor
    advantages_B: Tensor
    behavior_logprobs_BT: Tensor
    step: int = 0
    max_new_tokens: int = 0
    is_prefix_BT: Tensor | None = None


@dataclass
class PolicyOutput:
    """What models say of a batch's tokens, in nats. Only the first has a gradient (the second too, for a term that needs
    `entropy_gradient`); the last three are there for algorithms with a term that needs them.

    Attributes:
        logprobs_BT: of each response token, by the policy being trained.
        entropies_BT: of its distribution.
        old_logprobs_BT: by the policy before the first update of the step; None if this is the first.
        reference_logprobs_BT: by the frozen reference model.
        mean_entropy: scalar, the mean over all rollout tokens of the step before its first update.
    """

    logprobs_BT: Tensor
    entropies_BT: Tensor
    old_logprobs_BT: Tensor | None = None
    reference_logprobs_BT: Tensor | None = None
    mean_entropy: Tensor | None = None

    @property
    def old_BT(self) -> Tensor:
        """Log-probs of π_old, without gradient."""
        return self.logprobs_BT.detach() if self.old_logprobs_BT is None else self.old_logprobs_BT

    @property
    def reference_BT(self) -> Tensor:
        if self.reference_logprobs_BT is None:
            raise ValueError(
                "reference log-probs are missing: a term that uses them says needs=('reference',)"
            )
        return self.reference_logprobs_BT

    def where(self, mask_BT: Tensor) -> "PolicyOutput":
        """Zeros outside the mask, so that a NaN or an infinity there reaches neither the loss nor a gradient."""

        def keep(values_BT: Tensor | None) -> Tensor | None:
            return None if values_BT is None else torch.where(mask_BT, values_BT, values_BT.new_zeros(()))

        return replace(
            self,
            logprobs_BT=keep(self.logprobs_BT),
            entropies_BT=keep(self.entropies_BT),
            old_logprobs_BT=keep(self.old_logprobs_BT),
            reference_logprobs_BT=keep(self.reference_logprobs_BT),
        )
