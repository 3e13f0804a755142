"""PPO with a critic: advantages, the critic's loss and the policy's, with numbers worked out by hand."""

import pytest
import torch

from algorithms import PPO, Batch, Completion, Group, PolicyOutput, TwoStage
from algorithms.gae import generalized_advantages, token_rewards
from srft_ray.config.load import make_config
from srft_ray.config.resolve import resolve
from srft_ray.errors import UserError
from tests.conftest import base_config

MASK = torch.tensor([[True, True, True], [True, True, False]])


def values_of(rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_a_reward_is_at_the_last_token():
    rewards_BT = token_rewards(values_of([1.0, 2.0]), MASK)
    assert rewards_BT.tolist() == [[0.0, 0.0, 1.0], [0.0, 2.0, 0.0]]
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    assert token_rewards(values_of([3.0]), nothing).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("discount", "gae_lambda", "first", "second"),
    [
        # γ = λ = 1: the reward less the value.
        (1.0, 1.0, [0.8, 0.6, 0.5], [1.9, 1.7]),
        # λ = 0: δ alone, 0.4 - 0.2, 0.5 - 0.4, 1 - 0.5; 0.3 - 0.1, 2 - 0.3.
        (1.0, 0.0, [0.2, 0.1, 0.5], [0.2, 1.7]),
        # γ = 0.5: δ is 0, -0.15, 0.5 and 0.05, 1.7; γλ is 0.25.
        (0.5, 0.5, [-0.00625, -0.025, 0.5], [0.475, 1.7]),
    ],
)
def test_advantages_by_hand(discount, gae_lambda, first, second):
    values_BT = values_of([[0.2, 0.4, 0.5], [0.1, 0.3, 9.0]])
    rewards_BT = token_rewards(values_of([1.0, 2.0]), MASK)
    found = generalized_advantages(rewards_BT, values_BT, MASK, discount, gae_lambda)
    assert found[0].tolist() == pytest.approx(first) and found[1].tolist() == pytest.approx([*second, 0.0])


def test_what_an_environment_wrote_counts_for_no_time():
    """The second and third token of four are not the policy's: the others have the credit of two in a row."""
    mask_BT = torch.tensor([[True, False, False, True]])
    values_BT = values_of([[0.2, 7.0, 7.0, 0.4]])
    found = generalized_advantages(token_rewards(values_of([1.0]), mask_BT), values_BT, mask_BT, 1.0, 0.5)
    assert found[0].tolist() == pytest.approx([0.2 + 0.5 * 0.6, 0.0, 0.0, 0.6])


def batch(**more):
    return Batch(
        mask_BT=torch.tensor([[True, True, True, True]]),
        is_demo_B=torch.tensor([False]),
        rewards_B=torch.ones(1),
        advantages_B=values_of([1.0]),
        behavior_logprobs_BT=torch.zeros(1, 4, dtype=torch.float64),
        **more,
    )


def test_the_loss_of_the_critic_by_hand():
    values_BT = values_of([[0.5, 0.5, 0.1, 0.6]]).requires_grad_()
    given = batch(
        returns_BT=values_of([[1.0, 0.0, 0.0, 1.0]]), old_values_BT=values_of([[0.4, 0.1, 0.5, 0.1]])
    )
    zeros_BT = torch.zeros(1, 4, dtype=torch.float64)
    policy = PolicyOutput(zeros_BT, zeros_BT, values_BT=values_BT)
    loss = PPO().critic().losses(given, policy)["value"]
    # V clipped to V_old ± 0.2 is 0.5, 0.3, 0.3 and 0.3: its error is the larger one at the last two tokens.
    assert loss.item() == pytest.approx(0.5 * (0.25 + 0.25 + 0.09 + 0.49) / 4)
    loss.backward()
    # No gradient where the clipped value counts; the first token's value is not clipped.
    assert values_BT.grad.tolist()[0] == pytest.approx([-0.125, 0.125, 0.0, 0.0])
    plain = PPO(value_clip=None).critic().losses(given, policy)["value"]
    assert plain.item() == pytest.approx(0.5 * (0.25 + 0.25 + 0.01 + 0.16) / 4)
    (term,) = PPO().critic().terms()
    assert term.metrics["clipped"](given, policy).tolist() == [[0.0, 1.0, 1.0, 1.0]]


def test_the_policy_has_an_advantage_for_each_token():
    logprobs_BT = values_of([[0.5, 0.5, 0.6, 0.3]]).log().requires_grad_()
    old_BT = values_of([[0.5, 0.25, 0.5, 0.5]]).log()
    given = batch(token_advantages_BT=values_of([[1.0, 2.0, -1.0, -1.0]]))
    policy = PolicyOutput(logprobs_BT, torch.zeros(1, 4), old_logprobs_BT=old_BT)
    loss = PPO().losses(given, policy)["policy"]
    # Ratios 1, 2, 1.2 and 0.6; clipped are 2 to 1.2, and 0.6 to 0.8.
    assert loss.item() == pytest.approx(-(1.0 + 2.4 - 1.2 - 0.8) / 4)
    loss.backward()
    assert logprobs_BT.grad.tolist()[0] == pytest.approx([-0.25, 0.0, 0.3, 0.0])


def test_the_credit_of_a_rollout_is_its_reward():
    completions = [Completion(n, "rollout", "", [5, 6], reward=float(n)) for n in range(2)]
    group = Group(0, 0, "", [1], "", completions=[*completions, Completion(2, "demo", "", [7])])
    PPO(reward_scale=2.0, reward_shift=-1.0).assign_credit(group)
    assert [one.advantage for one in group.completions] == [-1.0, 1.0, 0.0]
    assert [one.trained for one in group.completions] == [True, True, False]


def test_advantages_are_standardized_over_the_step():
    mean, deviation = values_of(0.5), values_of(2.0)
    assert PPO().rescaled(values_of([2.5]), mean, deviation).item() == pytest.approx(1.0, abs=1e-6)
    assert PPO(standardize=False).rescaled(values_of([2.5]), mean, deviation).item() == 2.5


def test_stages_have_a_critic_if_one_of_them_does():
    assert TwoStage(second=PPO()).uses_critic and not TwoStage().uses_critic


def test_a_second_stage_names_the_critic_that_it_begins_with(tmp_path, tiny_model):
    values = base_config(tmp_path, tiny_model)
    with pytest.raises(
        UserError, match=r"would begin as the model before the first stage: set learner\.critic"
    ):
        resolve(make_config(values), TwoStage(second=PPO(), first_steps=1))
    resolve(make_config(values), TwoStage(first=PPO(), second=PPO(), first_steps=1))
    resolve(make_config(values), TwoStage(second=PPO(), first_steps=0))
    values["learner"]["critic"] = str(tiny_model)
    resolve(make_config(values), TwoStage(second=PPO(), first_steps=1))
