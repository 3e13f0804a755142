"""Whether an algorithm corrects for who sampled: what it says of itself is what its gradient shows."""

from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms import REGISTRY, Algorithm, Batch, PolicyOutput

VARIANTS = ({}, {"old": "behavior"}, {"old": "learner", "correction": "token_tis", "correction_high": 1.0})
SHAPE = (6, 5)  # five rollouts and a demonstration


class Figures(dict[str, Tensor]):
    """Every figure of a sequence that a term may ask for."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Tensor:
        return torch.full(SHAPE[:1], 1.3)


def gradient(algorithm: Algorithm, behavior_BT: Tensor) -> Tensor:
    """Of the loss by the log-probs of the tokens, if these are the log-probs of the policy that sampled."""
    torch.manual_seed(1)
    logprobs_BT = (-torch.rand(SHAPE)).requires_grad_()
    is_demo_B = torch.arange(SHAPE[0]) == SHAPE[0] - 1
    batch = Batch(
        mask_BT=torch.ones(SHAPE, dtype=torch.bool),
        is_demo_B=is_demo_B,
        rewards_B=torch.tensor([1.0, 0, 1, 0, 1, 1]),
        advantages_B=torch.tensor([1.0, -1, 0.5, -0.5, 0.3, 0.2]),
        behavior_logprobs_BT=(logprobs_BT.detach() + behavior_BT) * ~is_demo_B[:, None],
        max_new_tokens=8,
        values=Figures(),
    )
    kl_BT = (logprobs_BT - logprobs_BT.detach() + 0.1) ** 2
    kls = {"reference_kl_BT": kl_BT, "teacher_kl_BT": kl_BT}
    policy = PolicyOutput(logprobs_BT, torch.rand(SHAPE), None, logprobs_BT.detach() - 0.1, **kls)
    sum(algorithm.losses(batch, policy).values()).backward()
    return logprobs_BT.grad


def made(name: str, variant: dict[str, Any]) -> list[Algorithm]:
    """The stages of an algorithm with these settings; none if it does not have or allow them."""
    try:
        algorithm = REGISTRY[name](**variant)
    except (TypeError, ValueError):
        return []
    return [algorithm.stage(step, 10).algorithm for step in (0, 9)]


@pytest.mark.parametrize("name", REGISTRY)
def test_what_an_algorithm_says_of_itself_is_what_its_gradient_shows(name: str):
    difference_BT = 0.05 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    for variant in VARIANTS:
        for algorithm in made(name, variant):
            on_policy, stale = gradient(algorithm, 0 * difference_BT), gradient(algorithm, difference_BT)
            assert algorithm.corrects_rollouts == (not torch.equal(on_policy, stale)), (algorithm, variant)


def test_the_variants_are_not_refused_by_all():
    assert all(made("grpo", variant) and made("dapo", variant) for variant in VARIANTS)
