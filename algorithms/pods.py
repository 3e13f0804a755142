"""PODS: many rollouts are sampled, and few are trained on."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms.credit import most_varied
from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.settings import limited
from algorithms.types import Completion, Group


@dataclass(frozen=True)
class PODS(GRPO):
    """Policy optimization with down-sampling: GRPO on the rollouts of a group whose rewards vary most

    Of rollout.num_rollouts, `trained_rollouts` are trained on: the highest and the lowest rewards, in the
    numbers that give the largest variance. Sampling is cheaper than training, so that many can be sampled. Â
    is that of the chosen rollouts among each other, the others have 0; whether the paper takes its mean and
    std before or after the choice by default is not known here. Other oversampling, such as T1's, is this
    with another rule in `trains_on`.
    """

    name: ClassVar[str] = "pods"
    paper: ClassVar[str] = "arXiv 2504.13818"
    old: Old = "learner"
    trained_rollouts: int = limited(4, least=2)

    def advantages(self, group: Group) -> list[float]:
        chosen = self._chosen(group)
        credit = iter(self.credit_rule([self.shaped_reward(group, completion) for completion in chosen]))
        kept = {id(completion): advantage for completion, advantage in zip(chosen, credit, strict=True)}
        return [kept.get(id(completion), 0.0) for completion in group.completions]

    def trains_on(self, group: Group, completion: Completion) -> bool:
        chosen = any(completion is one for one in self._chosen(group))
        return chosen and super().trains_on(group, completion)

    def _chosen(self, group: Group) -> list[Completion]:
        rewards = [self.shaped_reward(group, rollout) for rollout in group.rollouts]
        numbers = most_varied(rewards, min(self.trained_rollouts, len(rewards)))
        return [rollout for number, rollout in enumerate(group.rollouts) if number in numbers]
