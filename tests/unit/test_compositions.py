"""Golden numbers, worked out by hand, of the methods that are small compositions of the vocabulary."""

import math
import random

import pytest
import torch

from algorithms import (
    CHORDIS,
    CISPO,
    DGRO,
    DPO,
    EAFT,
    GRPO,
    IBRO,
    OPMD,
    PODS,
    R3,
    T1,
    TRAPO,
    UFT,
    GuidedGRPO,
    ProbabilityMask,
    SFTThenDPO,
    WeightedSFT,
)
from algorithms.credit import most_varied, soft_advantages
from algorithms.schedules import cosine
from tests.unit.test_algorithms import close
from tests.unit.test_methods import group, one_sequence, per_token

LOG = [0.69314718, 2.30258509, 0.10536052]  # -log of 0.5, 0.1 and 0.9


def with_prefix(p, prefix, **more):
    """One rollout whose first tokens come from a demonstration."""
    batch, policy = one_sequence(p, **more)
    batch.is_prefix_BT = torch.arange(len(p))[None] < prefix
    return batch, policy


def gradient_of(algorithm, name, batch, policy):
    per_token(algorithm, name, batch, policy).sum().backward()
    return policy.logprobs_BT.grad[0]


# RL


def test_ibro_weights_the_entropy_by_the_advantage():
    batch, policy = one_sequence([0.5, 0.25], advantage=2.0)
    policy.entropies_BT = torch.tensor([[0.3, 0.7]], dtype=torch.float64, requires_grad=True)
    found = per_token(IBRO(), "entropy", batch, policy)
    close(found, [-0.006, -0.014])  # 0.01 · -2 · H
    found.sum().backward()
    close(policy.entropies_BT.grad[0], [-0.02, -0.02])
    close(per_token(GRPO(entropy_coefficient=0.01), "entropy", batch, policy), [-0.003, -0.007])
    assert IBRO().needs == {"entropy_gradient"} and IBRO().norm == "token_mean"


def test_dgro():
    batch, policy = one_sequence([0.5, 0.25], behavior=[0.4, 0.5])
    found = DGRO().losses(batch, policy)
    close(found["policy"], 2.07944154)
    close(found["distance"], 0.05 * 0.22090341)  # S = 0.22314355 - 0.69314718 = -0.47000363
    sum(found.values()).backward()
    close(policy.logprobs_BT.grad[0], [-1.04700036] * 2)  # -1 + 2 · 0.05 · S


def test_dgros_values():
    close(soft_advantages([1, 0], 1.0), [0.37988549, -0.62011451])  # V = log((e + 1) / 2)
    close(soft_advantages([1000, 0], 1.0), [0.69314718, -999.30685282])
    close(DGRO(value="soft").advantages(group([1, 0])), [0.37988549, -0.62011451, 0.0])
    close(DGRO().advantages(group([1, 0])), [0.5, -0.5, 0.0])


def test_opmd_has_the_gradient_of_a_square():
    """Half of the gradient of (R - V - τ S)² / τ, at R - V = 1, τ = 0.1 and S = -0.47000363."""
    batch, policy = one_sequence([0.5, 0.25], behavior=[0.4, 0.5])
    sum(OPMD().losses(batch, policy).values()).backward()
    close(policy.logprobs_BT.grad[0], [-(1 + 0.1 * 0.47000363)] * 2)


def test_cispo_keeps_the_gradient_of_what_ppo_clips():
    batch, policy = one_sequence([0.5, 0.1, 0.9], old=[0.05, 0.2, 0.9])  # ratios 10, 0.5 and 1
    found = per_token(CISPO(), "policy", batch, policy)
    close(found, [5 * LOG[0], 0.5 * LOG[1], LOG[2]])
    found.sum().backward()
    close(policy.logprobs_BT.grad[0], [-5.0, -0.5, -1.0])
    close(per_token(CISPO(clip_low=0.2), "policy", batch, policy)[1], 0.8 * LOG[1])
    with pytest.raises(ValueError, match="leave dual_clip empty"):
        CISPO(dual_clip=3.0)


def test_the_probability_mask():
    batch, policy = one_sequence([0.5, 0.1, 0.9], old=[0.5, 0.1, 0.9])
    close(per_token(ProbabilityMask(), "policy", batch, policy), [-1.0, -1.0, 0.0])
    close(ProbabilityMask(norm="token_mean").losses(batch, policy)["policy"], -2 / 3)


def test_pods_trains_on_the_rollouts_that_vary_most():
    assert most_varied([0, 1, 0, 0, 1, 1], 4) == {0, 2, 4, 5}
    assert most_varied([0.1, 0.5, 0.9, 0.4], 2) == {0, 2}
    assert most_varied([1, 0, 0, 0, 0], 2) == {0, 4} and most_varied([1, 1, 1, 1, 0], 4) == {1, 2, 3, 4}
    one, pods = group([1, 0, 0, 0, 0, 0], 1), PODS(trained_rollouts=2)
    trained = [pods.trains_on(one, completion) for completion in one.completions]
    assert trained == [True, False, False, False, False, True, False]
    close(pods.advantages(one), [0.70710578, 0, 0, 0, 0, -0.70710578, 0])  # 1/2 over 1/√2
    assert [PODS().trains_on(one, completion) for completion in one.completions].count(True) == 4


def test_t1s_anchor_becomes_the_policy_every_few_steps_or_follows_it():
    assert [step for step in range(12) if T1(anchor_every=5).reference_rate(step)] == [5, 10]
    assert [T1(anchor_rate=0.1).reference_rate(step) for step in (0, 1, 2)] == [0.0, 0.1, 0.1]
    assert all(GRPO().reference_rate(step) == 0 for step in range(3))


def test_t1s_penalties():
    one = group([1, 1], 0, lengths=[12, 12])
    one.completions[0].ids = list(range(12))  # of the other's five sequences of 8 equal tokens four repeat
    one.completions[0].finish_reason = "length"
    assert [T1().shaped_reward(one, completion) for completion in one.completions] == [0.5, 1 - 0.5 * 0.8]


def test_dpos_reference_is_the_policy_that_sft_ends_with():
    two = SFTThenDPO(first_steps=3)
    assert [two.stage(step, 9).algorithm.name for step in (2, 3)] == ["sft", "dpo"]
    assert [two.stage(3, 9).algorithm.reference_rate(step) for step in (0, 1)] == [1.0, 0.0]
    assert DPO().reference_rate(0) == 0.0


# SFT


@pytest.mark.parametrize(
    ("settings", "weight"),
    [
        ({}, [1.5, 4.0, 0.1]),
        ({"weighting": "top_entropy", "top_share": 0.3}, [0, 1, 0]),
        ({"weighting": "masked"}, [0, 1, 0]),
        ({"weighting": "focal", "focal_power": 2.0}, [0.25, 0.81, 0.01]),
    ],
)
def test_weighted_sft(settings, weight):
    batch, policy = one_sequence([0.5, 0.1, 0.9], demo=True)
    policy.entropies_BT = torch.tensor([[1.5, 4.0, 0.1]], dtype=torch.float64)
    expected = [w * nll for w, nll in zip(weight, LOG, strict=True)]
    close(per_token(WeightedSFT(**settings), "sft_demo", batch, policy), expected)


def test_eaft():
    batch, policy = one_sequence([0.5, 0.1], demo=True)
    policy.entropies_BT = torch.tensor([[1.5, 4.0]], dtype=torch.float64)
    close(per_token(EAFT(), "sft_demo", batch, policy), [0.50071230 * LOG[0], LOG[1]])  # 1.5 / ln 20
    close(per_token(EAFT(power=2.0), "sft_demo", batch, policy), [0.25071281 * LOG[0], LOG[1]])


def test_chord_with_sft_is():
    close(
        per_token(CHORDIS(), "sft_demo", *one_sequence([0.5, 0.1], demo=True)), [0.1 * 0.34657359, 0.02302585]
    )


# hints


def test_uft_trains_on_what_follows_the_hint_and_a_little_on_the_hint():
    batch, policy = with_prefix([0.5, 0.1, 0.9], 1, behavior=[1.0, 0.1, 0.9])
    policy.reference_logprobs_BT = policy.logprobs_BT.detach()
    uft = UFT(norm="token_mean")
    found = uft.losses(batch, policy)
    close([float(found[name].detach()) for name in ("policy", "kl", "sft_hint")], [-1.0, 0.0, 0.001 * LOG[0]])
    found["policy"].backward(retain_graph=True)
    close(policy.logprobs_BT.grad[0], [0.0, -0.5, -0.5])
    assert uft.counts(batch)["policy"] == 2


def test_ufts_hints_become_shorter():
    one, uft = group([0, 0], limit=64), UFT()

    def mean(step):
        lengths = [uft.prefix(one, 0, step, random.Random(seed)) for seed in range(400)]
        assert set(lengths) <= {0, 4, 8, 12, 16, 18}  # of 20 tokens, of which two are sampled
        return sum(lengths) / 400 / 20

    close([cosine(step, 0.95, 0.05, 300) for step in (0, 75, 150, 225)], [0.95, 0.818198, 0.5, 0.181802])
    assert abs(mean(150) - 0.5) < 0.03 and abs(mean(225) - 0.18) < 0.03 and mean(300) == 0.0


def test_r3_has_hints_of_every_length_and_no_loss_on_them():
    one = group([0], limit=64)
    found = {R3().prefix(one, 0, 5000, random.Random(seed)) for seed in range(200)}
    assert found == {0, 4, 8, 12, 16, 18}
    close(per_token(R3(), "sft_hint", *with_prefix([0.5, 0.5], 1)), [0.0, 0.0])
    assert R3().prefix(group([0], 0), 0, 0, random.Random(0)) == 0, "there is no demonstration"


def test_half_of_the_rollouts_are_guided():
    one, guided = group([0] * 4, limit=64), GuidedGRPO()
    one.num_rollouts = 4
    lengths = [
        {guided.prefix(one, sample, 0, random.Random(seed)) for seed in range(99)} for sample in range(4)
    ]
    assert lengths[2] == lengths[3] == {0} and max(lengths[0]) == 14 and min(lengths[1]) == 0
    assert [guided.trains_on(one, completion) for completion in one.completions] == [True] * 4 + [False]


def test_trapo_attenuates_where_sft_pushes_hardest():
    batch, policy = with_prefix([0.05, 0.5, 0.9], 2)
    assert gradient_of(TRAPO(), "sft_prefix", batch, policy).tolist() == pytest.approx([-0.5, -1.0, -1.0])
    found = TRAPO(entropy_coefficient=0.0).losses(batch, policy)
    close(found["sft_prefix"], (0.5 * -math.log(0.05) + LOG[0]) / 3)
    close(found["policy"], -1.0)  # one sampled token, with ratio 1


def test_the_correction_of_stale_rollouts_leaves_prefixes_out():
    batch, policy = with_prefix([0.7] * 3, 1, old=[0.1, 0.2, 0.9], behavior=[1.0, 0.25, 0.9])
    for kind, expected in (("sequence_tis", 0.8), ("geometric_mis", 0.0)):
        uft = UFT(old="learner", correction=kind, correction_low=0.9)
        close(uft.terms()[0].weight(batch, policy)[0], [expected])
