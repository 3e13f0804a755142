"""SRFT against the independent one-page oracle: values and gradients of random groups."""

import random
import runpy
from pathlib import Path

import pytest
import torch

from algorithms import SRFT, Batch, Completion, Group, PolicyOutput

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
