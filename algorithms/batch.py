"""What the terms see of a micro-batch: Batch (its data) and PolicyOutput (what the models say of it).

Shapes: B sequences, T response positions, padded on the right.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass
class Batch:
    """The data of a micro-batch: B sequences with T response positions.

    Attributes:
        mask_BT: bool, True at response tokens, but for those that an environment wrote.
        is_demo_B: bool.
        rewards_B, advantages_B: float.
        behavior_logprobs_BT: log-probs by the policy that generated the tokens, in nats; 0 for
            demonstrations, prefixes and padding.
        step: optimizer steps since the first step of the stage, for schedules.
        max_new_tokens: the most tokens that a response may have.
        is_prefix_BT: bool, True at tokens of a rollout that come from a demonstration; None: there are none.
        values: figures of each sequence by name, float (B,), as `Algorithm.sequence_values` gives them.
        is_replay_B: bool, True for rollouts of earlier steps; None: there are none.
        token_advantages_BT: the advantage of each token, from a critic; None: there is no critic, as below.
        returns_BT: what the critic's value of the state before each token is to be.
        old_values_BT: these values before the first update of the step.
    """

    mask_BT: Tensor
    is_demo_B: Tensor
    rewards_B: Tensor
    advantages_B: Tensor
    behavior_logprobs_BT: Tensor
    step: int = 0
    max_new_tokens: int = 0
    is_prefix_BT: Tensor | None = None
    values: Mapping[str, Tensor] = field(default_factory=dict)
    is_replay_B: Tensor | None = None
    token_advantages_BT: Tensor | None = None
    returns_BT: Tensor | None = None
    old_values_BT: Tensor | None = None

    @property
    def advantages_BT(self) -> Tensor:
        """The advantage of each token (B, T), or that of its sequence (B, 1)."""
        return self.advantages_B[:, None] if self.token_advantages_BT is None else self.token_advantages_BT

    def value_B1(self, name: str) -> Tensor:
        """A figure of each sequence. Raises ValueError if `Algorithm.sequence_values` gives none."""
        if name not in self.values:
            raise ValueError(
                f"the sequences have no value '{name}': a term that uses it says needs=('values',), and "
                "sequence_values() gives it"
            )
        return self.values[name][:, None]


@dataclass
class PolicyOutput:
    """Log-probs and entropies of the response tokens of a batch, in nats.

    Attributes:
        logprobs_BT: log-probs by the policy that is trained, with gradient.
        entropies_BT: entropies of its distributions, with gradient only if a term needs "entropy_gradient".
        old_logprobs_BT: log-probs by the policy before the first update of the step; None in a step with one
            update.
        reference_logprobs_BT: log-probs by the frozen reference model, if a term needs "reference".
        mean_entropy: scalar, the mean over all rollout tokens of the step before its first update, if a term
            needs "mean_entropy".
        reference_kl_BT: KL(π‖reference) of the distributions of each token over the whole vocabulary, with
            gradient, if a term needs "reference_kl".
        teacher_kl_BT: the same to the policy itself, without gradient, after it has seen a demonstration of
            the prompt, if a term needs "teacher_kl".
        values_BT: the critic's value of the state before each token, with gradient, in the critic's loss.
    """

    logprobs_BT: Tensor
    entropies_BT: Tensor
    old_logprobs_BT: Tensor | None = None
    reference_logprobs_BT: Tensor | None = None
    mean_entropy: Tensor | None = None
    reference_kl_BT: Tensor | None = None
    teacher_kl_BT: Tensor | None = None
    values_BT: Tensor | None = None

    @property
    def old_BT(self) -> Tensor:
        """Log-probs of π_old, without gradient."""
        return self.logprobs_BT.detach() if self.old_logprobs_BT is None else self.old_logprobs_BT

    @property
    def reference_BT(self) -> Tensor:
        """Log-probs of the reference model. Raises ValueError if they were not computed."""
        if self.reference_logprobs_BT is None:
            raise ValueError(
                "reference log-probs are missing: a term that uses them says needs=('reference',)"
            )
        return self.reference_logprobs_BT

    def kl_BT(self, need: str) -> Tensor:
        """The KL that a term needs, "reference_kl" or "teacher_kl". Raises ValueError if it is missing."""
        found = self.reference_kl_BT if need == "reference_kl" else self.teacher_kl_BT
        if found is None:
            raise ValueError(f"the KL is missing: a term that uses it says needs=('{need}',)")
        return found

    def where(self, mask_BT: Tensor) -> "PolicyOutput":
        """A copy with 0 outside the mask, so that NaN or infinity there affects neither loss nor gradient."""

        def keep(values_BT: Tensor | None) -> Tensor | None:
            if values_BT is None:
                return None
            return torch.where(mask_BT, values_BT, values_BT.new_zeros(()))

        return replace(
            self,
            logprobs_BT=keep(self.logprobs_BT),
            entropies_BT=keep(self.entropies_BT),
            old_logprobs_BT=keep(self.old_logprobs_BT),
            reference_logprobs_BT=keep(self.reference_logprobs_BT),
            reference_kl_BT=keep(self.reference_kl_BT),
            teacher_kl_BT=keep(self.teacher_kl_BT),
            values_BT=keep(self.values_BT),
        )
