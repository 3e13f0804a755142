"""SDFT: the policy that has seen the demonstration teaches the policy that has not."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms import selections
from algorithms.base import Algorithm
from algorithms.regularizers import teacher_kl
from algorithms.term import Term
from algorithms.types import Completion, Group


@dataclass(frozen=True)
class SDFT(Algorithm):
    """Self-distillation: L = E_rollouts[KL(π(·|x, y_<t) ‖ sg π(·|x, y*, x, y_<t))], y* the demonstration

    The rollouts are the policy's own text, so that it learns from demonstrations without imitating theirs;
    no reward is needed. The KL is over the whole vocabulary. Prompts without demonstration are not trained
    on. Deviations: the teacher is the current policy, where SDFT averages its weights over time and OPSD
    keeps those of the start; it sees the prompt with its demonstration and then the prompt again, as tokens,
    where the authors put a sentence around it. The teacher's forward pass has longer sequences, which
    learner.micro_batch_tokens does not count.
    """

    name: ClassVar[str] = "sdft"
    paper: ClassVar[str] = "arXiv 2601.19897 (SDFT)"
    max_refills: ClassVar[int] = 100

    def terms(self) -> tuple[Term, ...]:
        return (Term("distill", selections.sampled, teacher_kl, needs=("teacher_kl",)),)

    def trains_on(self, group: Group, completion: Completion) -> bool:
        return completion.origin == "rollout" and bool(group.demonstrations)

    def has_signal(self, group: Group) -> bool:
        return bool(group.demonstrations)
