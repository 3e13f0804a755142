"""PPO with a critic: advantages of each token from the values that a second model learns."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from algorithms.base import Algorithm
from algorithms.batch import Batch
from algorithms.credit import EPSILON
from algorithms.gae import clipped_value_error, generalized_advantages, token_rewards, value_is_clipped
from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.selections import rollouts
from algorithms.settings import limited
from algorithms.term import Norm, Term
from algorithms.types import Completion, Group


@dataclass(frozen=True)
class ValueRegression(Algorithm):
    """The critic's loss: L = ½ E_t max((V - R)², (clip(V, V_old - ε, V_old + ε) - R)²), R = Â + V_old."""

    name: ClassVar[str] = "value"
    clip: float | None = 0.2

    def terms(self) -> tuple[Term, ...]:
        metrics = {"clipped": value_is_clipped(self.clip)}
        return (Term("value", rollouts, clipped_value_error(self.clip), metrics=metrics),)


@dataclass(frozen=True)
class PPO(GRPO):
    """PPO with a critic: L = -E_t min(r Â_t, clip(r, 1-ε, 1+ε) Â_t), Â_t = Σ_k (γλ)^k δ_{t+k}

    δ_t = r_t + γ V_{t+1} - V_t, and the verifier's reward is r at the last token of a response, also of one
    without an end. V is a second model with an optimizer of its own (learner.critic, learner.critic_lr). It
    begins as the policy's decoder with a new scalar head of zeros, learns from the same mini-batches after
    the policy, and regresses R = Â + V_old with its own clip `value_clip`; V_old and Â are those before the
    first update of the step. `standardize` makes Â of all tokens of the step have mean 0 and deviation 1.
    γ = λ = 1 are usual for responses that are judged as a whole; arXiv 1506.02438 and many codes have λ =
    0.95. The clips of 0.2 are arXiv 1707.06347's and its code's. Deviations: KL to a reference is a term of
    the loss (`kl_coefficient`), not a part of r_t; there is no warm-up of the critic alone.
    """

    name: ClassVar[str] = "ppo"
    paper: ClassVar[str] = "arXiv 1707.06347, GAE of arXiv 1506.02438"
    min_rollouts: ClassVar[int] = 1
    uses_critic: ClassVar[bool] = True
    norm: Norm = "token_mean"
    old: Old = "learner"
    discount: float = limited(1.0, least=0, most=1)
    gae_lambda: float = limited(1.0, least=0, most=1)
    value_clip: float | None = limited(0.2, least=0)

    def advantages(self, group: Group) -> list[float]:
        """The reward of each rollout, which `token_advantages` shares out."""
        return [self._reward(group, completion) for completion in group.completions]

    def _reward(self, group: Group, completion: Completion) -> float:
        return self.shaped_reward(group, completion) if completion.origin == "rollout" else 0.0

    def trains_on(self, group: Group, completion: Completion) -> bool:
        return completion.origin == "rollout" and super().trains_on(group, completion)

    def token_advantages(self, batch: Batch, values_BT: Tensor) -> Tensor:
        mask_BT = rollouts(batch)
        rewards_BT = token_rewards(batch.advantages_B, mask_BT)
        return generalized_advantages(rewards_BT, values_BT, mask_BT, self.discount, self.gae_lambda)

    def rescaled(self, advantages_BT: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        if not self.standardize:
            return advantages_BT
        return ((advantages_BT - mean) / (deviation + EPSILON)).to(advantages_BT.dtype)

    def critic(self) -> Algorithm:
        return ValueRegression(self.value_clip)
