"""SRFT and PPO against independent one-page oracles: values and gradients of random groups."""

import random
import runpy
from pathlib import Path

import pytest
import torch

from algorithms import PPO, SRFT, Batch, Completion, Group, PolicyOutput
from tests.distributed.one_page_critic import gae

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 7


def random_group(rng, number):
    """A group with 0 to 2 demonstrations, and its sequences for the oracle."""
    rewards = [float(rng.random() < 0.5) for _ in range(rng.randrange(1, 5))]
    demos = rng.randrange(3)
    sequences = [
        {
            "tokens": [rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 6))],
            "reward": reward,
            "demo": demo,
        }
        for reward, demo in [*((reward, False) for reward in rewards), *((1.0, True),) * demos]
    ]
    completions = [
        Completion(i, "demo" if s["demo"] else "rollout", "", s["tokens"], reward=s["reward"])
        for i, s in enumerate(sequences)
    ]
    return Group(0, number, "", [], "", completions=completions), sequences


@pytest.mark.parametrize("seed", range(20))
def test_srft_equals_the_oracle(seed):
    rng, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    groups = [random_group(rng, number) for number in range(4)]
    sequences = [sequence for _, members in groups for sequence in members]
    completions = [completion for group, _ in groups for completion in group.completions]
    longest = max(len(s["tokens"]) for s in sequences)
    logits = (
        3 * torch.randn(len(sequences), longest, VOCABULARY, generator=noise, dtype=torch.float64)
    ).requires_grad_()
    for row, sequence in enumerate(sequences):
        sequence["logits"] = logits[row, : len(sequence["tokens"])]
    expected = runpy.run_path(str(ROOT / "examples" / "srft_one_page.py"))["srft_loss"](
        [members for _, members in groups]
    )
    (gradient,) = torch.autograd.grad(sum(expected.values()), logits)

    tokens = torch.tensor([s["tokens"] + [0] * (longest - len(s["tokens"])) for s in sequences])
    mask = torch.arange(longest)[None] < torch.tensor([len(s["tokens"]) for s in sequences])[:, None]
    advantages = [advantage for group, _ in groups for advantage in SRFT().advantages(group)]
    batch = Batch(
        mask,
        torch.tensor([c.origin == "demo" for c in completions]),
        torch.tensor([c.reward for c in completions]).double(),
        torch.tensor(advantages, dtype=torch.float64),
        torch.zeros(mask.shape, dtype=torch.float64),
    )
    logprobs = logits.log_softmax(-1)
    policy = PolicyOutput(
        logprobs.gather(-1, tokens[..., None])[..., 0], -(logprobs.exp() * logprobs).sum(-1).detach()
    )
    found = SRFT().losses(batch, policy)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        torch.autograd.grad(sum(found.values()), logits)[0], gradient, atol=1e-12, rtol=0
    )


def test_the_oracle_prints_the_golden_values(capsys):
    runpy.run_path(str(ROOT / "examples" / "srft_one_page.py"), run_name="__main__")
    assert capsys.readouterr().out.split() == [
        "sft_demo",
        "+0.14165871",
        "rl_demo",
        "-0.28492767",
        "rl_positive",
        "+0.16258485",
        "rl_negative",
        "-0.17657494",
        "loss",
        "-0.15725906",
    ]


def one_page_ppo(rows):
    """(policy's loss, critic's loss) of rows of old, new and behavior numbers, token by token."""
    advantages = [gae(row["old_values"], row["reward"], 0.97, 0.9) for row in rows]
    every = torch.tensor([a for row in advantages for a in row], dtype=torch.float64)
    policy, critic = [], []
    for row, own in zip(rows, advantages, strict=True):
        for t, a in enumerate(own):
            scaled = (a - every.mean()) / (every.std() + 1e-6)
            ratio = (row["logprobs"][t] - row["old_logprobs"][t]).exp()
            bounded = ratio.clamp(0.8, 1.2)
            policy.append(-torch.minimum(ratio * scaled, bounded * scaled))
            old, value = row["old_values"][t], row["values"][t]
            target = a + old
            near = value.clamp(old - 0.2, old + 0.2)
            critic.append(0.5 * torch.maximum((value - target) ** 2, (near - target) ** 2))
    return torch.stack(policy).mean(), torch.stack(critic).mean()


@pytest.mark.parametrize("seed", range(5))
def test_ppo_with_a_critic_equals_one_page(seed):
    noise = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([4, 1, 6, 3])
    mask_BT = torch.arange(6)[None] < lengths[:, None]

    def random_BT():
        return torch.where(mask_BT, 0.3 * torch.randn(4, 6, generator=noise, dtype=torch.float64), 0.0)

    logprobs_BT, values_BT = (random_BT().requires_grad_() for _ in range(2))
    old_BT, old_values_BT = logprobs_BT.detach() + random_BT(), values_BT.detach() + random_BT()
    rewards = [1.0, 0.0, 1.0, 0.0]
    rows = [
        {
            "logprobs": logprobs_BT[row],
            "values": values_BT[row],
            "old_logprobs": old_BT[row],
            "old_values": old_values_BT[row, :length].tolist(),
            "reward": rewards[row],
        }
        for row, length in enumerate(lengths.tolist())
    ]
    expected = one_page_ppo(rows)

    ppo = PPO(discount=0.97, gae_lambda=0.9)
    rewards_B = torch.tensor(rewards, dtype=torch.float64)
    batch = Batch(mask_BT, torch.zeros(4, dtype=torch.bool), rewards_B, rewards_B, old_BT)
    advantages_BT = ppo.token_advantages(batch, old_values_BT)
    batch.returns_BT, batch.old_values_BT = advantages_BT + old_values_BT, old_values_BT
    every = advantages_BT[mask_BT]
    batch.token_advantages_BT = ppo.rescaled(advantages_BT, every.mean(), every.std())
    zeros_BT = torch.zeros(4, 6, dtype=torch.float64)
    found = (
        ppo.losses(batch, PolicyOutput(logprobs_BT, zeros_BT, old_BT))["policy"],
        ppo.critic().losses(batch, PolicyOutput(zeros_BT, zeros_BT, values_BT=values_BT))["value"],
    )
    for own, wanted, leaf in zip(found, expected, (logprobs_BT, values_BT), strict=True):
        torch.testing.assert_close(own, wanted, atol=1e-12, rtol=0)
        gradients = [torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in (own, wanted)]
        torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)
