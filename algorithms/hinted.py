"""Rollouts that continue a hint: the first tokens of the demonstration."""

import dataclasses
import random
from dataclasses import dataclass
from typing import ClassVar, Literal

from algorithms import losses, selections, weights
from algorithms.grpo import GRPO
from algorithms.schedules import cosine
from algorithms.settings import limited
from algorithms.term import Term
from algorithms.types import Completion, Group


def hint_length(group: Group, share: float) -> int:
    """Tokens of the first demonstration, of which at least the end and the token before it are sampled."""
    if not group.demonstrations:
        return 0
    length = min(len(group.demonstrations[0].ids), group.max_new_tokens)
    return max(0, min(int(share * length), length - 2))


@dataclass(frozen=True)
class HintedGRPO(GRPO):
    """GRPO on the tokens that the policy sampled itself, after a hint."""

    uses_demonstrations: ClassVar[bool] = True

    def policy_term(self) -> Term:
        return dataclasses.replace(super().policy_term(), select=selections.sampled)

    def trains_on(self, group: Group, completion: Completion) -> bool:
        return completion.origin == "rollout" and super().trains_on(group, completion)


@dataclass(frozen=True)
class UFT(HintedGRPO):
    """Unified fine-tuning: L = L_GRPO(sampled tokens after a hint) + 0.001 · E_hint[-log π] + 0.001 · KL

    All rollouts of a prompt continue the same hint: the first k of `parts` equal parts of the demonstration,
    k binomial with a probability from `start` to `end` along half a cosine in `hint_steps` steps; there is no
    hint after that. Settings are the code's. Choices: parts are cut by tokens (the code cuts text); the
    coefficient of its entropy bonus is unknown, so that there is none. For prompts that are too hard to solve
    without help in the beginning.
    """

    name: ClassVar[str] = "uft"
    paper: ClassVar[str] = "arXiv 2505.16984"
    shares_prefix: ClassVar[bool] = True
    hint: Literal["binomial", "uniform"] = "binomial"
    parts: int = limited(5, least=1)
    start: float = limited(0.95, least=0, most=1)
    end: float = limited(0.05, least=0, most=1)
    hint_steps: int = limited(300, least=1)
    hint_coefficient: float = limited(0.001, least=0)
    kl_coefficient: float = limited(0.001, least=0)

    def terms(self) -> tuple[Term, ...]:
        weight = weights.constant(self.hint_coefficient)
        return (*super().terms(), Term("sft_hint", selections.prefixes, losses.nll, weight))

    def prefix(self, group: Group, sample: int, step: int, rng: random.Random) -> int:
        if step >= self.hint_steps:
            return 0
        probability = cosine(step, self.start, self.end, self.hint_steps)
        given = sum(rng.random() < probability for _ in range(self.parts))
        if self.hint == "uniform":
            given = rng.randint(0, self.parts)
        return hint_length(group, given / self.parts)
