"""Golden numbers of all methods, from an independent numpy script and by hand; their gates and schedules."""

import math
import random

import pytest
import torch

from algorithms import (
    DAPO,
    DFT,
    GRPO,
    GSPO,
    HPT,
    IWSFT,
    LUFFY,
    RLOO,
    RLPLUS,
    SFT,
    SRFT,
    SRFTHPT,
    Batch,
    CHORDMu,
    CHORDPhi,
    Completion,
    DrGRPO,
    Group,
    PolicyOutput,
    PrefixRFT,
    ReLIFT,
    RLWithSFTLoss,
    Schedule,
    SFTThenRL,
    SRFTAuthors,
    SRFTWithoutRLDemo,
    SRFTWithoutSFTDemo,
    SRFTWithoutWRL,
    SRFTWithoutWSFT,
    Term,
    losses,
    selections,
    weights,
)
from algorithms.credit import group_advantages, leave_one_out, overlong_penalty
from algorithms.schedules import cosine
from tests.unit.test_algorithms import LOGITS, close, golden_batch, policy_output


def logs(*probabilities):
    return torch.log(torch.tensor([probabilities], dtype=torch.float64))


def one_sequence(p, old=None, reference=None, behavior=None, advantage=1.0, demo=False):
    """(batch, policy) of one sequence whose tokens have these probabilities."""
    mask = torch.ones(1, len(p), dtype=torch.bool)
    batch = Batch(
        mask,
        torch.tensor([demo]),
        torch.ones(1),
        torch.tensor([advantage], dtype=torch.float64),
        logs(*behavior) if behavior else torch.zeros(1, len(p), dtype=torch.float64),
    )
    policy = PolicyOutput(
        logs(*p).requires_grad_(),
        torch.zeros(1, len(p), dtype=torch.float64),
        old and logs(*old),
        reference and logs(*reference),
    )
    return batch, policy


def per_token(algorithm, name, batch, policy):
    """weight · loss of each token under a term of the algorithm."""
    term = next(term for term in algorithm.terms() if term.name == name)
    return (term.weight(batch, policy).detach() * term.loss(batch, policy))[0]


def losses_of(srft):
    return srft.losses(golden_batch(srft), policy_output(LOGITS))


# SRFT: options, readings and ablations


def test_srft_with_separate_means():
    found = losses_of(SRFT(pos_neg_norm="separate"))
    close(found["rl_positive"], 0.27097477)
    close(found["rl_negative"], -0.44143735)
    close(sum(found.values()), -0.31373157)


def test_srft_as_sums_over_sequences():
    found = losses_of(
        SRFT(norm="sequence_mean_token_sum", sft_norm="sequence_mean_token_sum", pos_neg_norm="separate")
    )
    close(
        torch.stack([found[name] for name in ("sft_demo", "rl_demo", "rl_positive", "rl_negative")]),
        [0.42497612, -0.85478302, 0.81292424, -0.88287469],
    )


def test_srft_as_in_the_code_of_hpt():
    found = losses_of(SRFTHPT(norm_constant=3.0, entropy_coefficient=0.0))
    close(found["rl_demo"] + found["rl_positive"] + found["rl_negative"], -0.28769936)
    close(sum(found.values()), -0.14604065)


def test_srft_with_the_mean_entropy_of_the_batch():
    batch, policy = golden_batch(SRFT()), policy_output(LOGITS)
    mean = (1.26830149 + 0.91828377 + 1.38629436 + 1.26830149 + 0.52906079) / 5
    found = losses_of(SRFT(entropy_granularity="batch"))
    close(found["sft_demo"], 0.5 * math.exp(-mean) * (0.27797837 + 0.62652338 + 1.66722416) / 3)
    close(found["rl_positive"], 0.1 * math.exp(mean) * (0.74366838 + 0.34075295 + 1.38629436) / 5)
    with pytest.raises(ValueError, match="mean_entropy"):
        SRFT(entropy_granularity="batch").losses(batch, policy, SRFT().counts(batch))


def test_srft_as_the_authors_code_is_described():
    found = losses_of(SRFTAuthors())
    entropies = (0.80105637, 1.16440622, 1.3559945)
    close(
        found["sft_demo"],
        sum(
            0.5 * math.exp(h) * lp
            for h, lp in zip(entropies, (0.27797837, 0.62652338, 1.66722416), strict=True)
        )
        / 3,
    )
    p = [math.exp(-lp) for lp in (0.27797837, 0.62652338, 1.66722416)]
    close(found["rl_demo"], -1 / 3 * sum(x / (x + 0.1) for x in p) / 3)
    close(
        found["rl_positive"],
        -1 / 3 * sum(0.1 * math.exp(h) for h in (1.26830149, 0.91828377, 1.38629436)) / 5,
    )  # the ratio is 1
    close(found["rl_negative"], 2 / 3 * 2 / 5)


def test_ablations_replace_or_drop_one_term():
    full = losses_of(SRFT())
    close(losses_of(SRFTWithoutWSFT())["sft_demo"], (0.27797837 + 0.62652338 + 1.66722416) / 3)
    close(losses_of(SRFTWithoutWRL())["rl_positive"], (0.74366838 + 0.34075295 + 1.38629436) / 5)
    for ablation, missing in ((SRFTWithoutSFTDemo(), "sft_demo"), (SRFTWithoutRLDemo(), "rl_demo")):
        assert set(full) - set(losses_of(ablation)) == {missing}
    for ablation, changed in ((SRFTWithoutWSFT(), "sft_demo"), (SRFTWithoutWRL(), "rl_positive")):
        assert [
            name for name, value in losses_of(ablation).items() if abs(float(value - full[name])) > 1e-9
        ] == [changed]


@pytest.mark.parametrize(
    ("surrogate", "expected"),
    [
        ("log_prob", [-1.0, -2.0]),
        ("prob", [math.exp(-1), math.exp(-2)]),
        ("ratio", [math.exp(0.5), math.exp(-0.5)]),
        ("log_ratio", [0.5, -0.5]),
    ],
)
def test_surrogates_of_rollouts(surrogate, expected):
    batch, policy = one_sequence([math.exp(-1), math.exp(-2)], old=[math.exp(-1.5)] * 2)
    close(
        -per_token(
            SRFT(self_rollout_surrogate=surrogate, rl_scale=1.0, rl_entropy_sign=0.0),
            "rl_positive",
            batch,
            policy,
        ),
        expected,
    )


# credit


def test_credit_rules():
    rewards = [1, 0, 0, 1, 0, 0, 0, 0]
    close(group_advantages(rewards, ddof=0)[:2], [1.73204681, -0.57734894])
    close(group_advantages([0] * 8 + [1], ddof=0)[-2:], [-0.35355227, 2.82841812])
    close(group_advantages([0] * 8 + [1], standardize=False)[-1], 0.88888889)
    close(group_advantages([-1] * 8 + [1], standardize=False)[-1], 1.77777778)
    close(group_advantages([-1] * 8 + [1])[-1], 2.66666267)
    close(leave_one_out(rewards)[:2], [0.85714286, -0.28571429])
    assert leave_one_out([1.0]) == [0.0]


def group(rewards, demos=1, lengths=None, limit=0):
    rollouts = [
        Completion(i, "rollout", "", [1] * (lengths or [3] * len(rewards))[i], reward=r)
        for i, r in enumerate(rewards)
    ]
    return Group(
        0,
        0,
        "",
        [],
        "",
        completions=rollouts + [Completion(9, "demo", "", list(range(20))) for _ in range(demos)],
        max_new_tokens=limit,
    )


def test_advantages_of_rollouts_alone_and_with_the_demonstration():
    with_std = (RLWithSFTLoss(standardize=True), HPT(standardize=True), ReLIFT(standardize=True))
    for algorithm in (GRPO(), CHORDMu(), *with_std):
        close(
            algorithm.advantages(group([1, 0, 0, 1, 0, 0, 0, 0])),
            [1.62018167, -0.54006056, -0.54006056, 1.62018167] + [-0.54006056] * 4 + [0.0],
        )
    close(DrGRPO().advantages(group([1, 0, 0, 1, 0, 0, 0, 0]))[:2], [0.75, -0.25])
    close(RLOO().advantages(group([1, 0, 0, 1, 0, 0, 0, 0]))[:2], [0.85714286, -0.28571429])
    close(LUFFY().advantages(group([1, 0])), [1 / 3, -2 / 3, 1 / 3])


@pytest.mark.parametrize(("length", "penalty"), [(16384, 0.0), (18432, -0.5), (20480, -1.0), (21000, -1.0)])
def test_overlong_penalty(length, penalty):
    assert overlong_penalty(length, 20480, 4096) == penalty


def test_dapo_shapes_rewards_by_length():
    found = DAPO(standardize=False, overlong_factor=1.0).advantages(
        group([1, 1, 0], demos=0, lengths=[70, 90, 100], limit=100)
    )  # buffer of 20 tokens
    close(found, [0.5 + 1 / 3, 1 / 3, -1 - 1 / 6])
    assert DAPO().advantages(group([0, 0, 0], demos=0, lengths=[70, 90, 100], limit=100)) == [0.0] * 3, (
        "no signal, whatever the lengths"
    )


# ratios, clips, corrections


def test_ppo_loss():
    for p, old, advantage, expected in ((0.5, 0.4, 1.0, -1.25), (0.1, 0.2, 1.0, -0.5), (0.9, 0.9, -1.0, 1.0)):
        batch, policy = one_sequence([p], old=[old], advantage=advantage)
        close(per_token(DAPO(old="learner"), "policy", batch, policy), [expected])


def test_behaviour_and_learner_are_different_old_policies():
    batch, policy = one_sequence([0.5], old=[0.4], behavior=[0.25])
    close(per_token(GRPO(clip_high=9.0), "policy", batch, policy), [-2.0])
    close(per_token(GRPO(clip_high=9.0, old="learner"), "policy", batch, policy), [-1.25])


def test_dual_clip():
    batch, policy = one_sequence([0.8], old=[0.1], advantage=-1.0)
    close(per_token(GRPO(old="learner"), "policy", batch, policy), [8.0])
    close(per_token(GRPO(old="learner", dual_clip=3.0), "policy", batch, policy), [3.0])


def test_clip_fraction():
    batch, policy = one_sequence([0.5, 0.1, 0.9], old=[0.4, 0.2, 0.9])
    bound = GRPO(old="learner").terms()[0].metrics["clipped"]
    close(bound(batch, policy)[0], [1.0, 0.0, 0.0])
    batch.advantages_B = -batch.advantages_B
    close(bound(batch, policy)[0], [0.0, 1.0, 0.0])
    close(GRPO(old="learner", dual_clip=1.1).terms()[0].metrics["clipped"](batch, policy)[0], [1.0, 1.0, 0.0])
    one_sided = GRPO(old="learner", clip_high=None)
    close(per_token(one_sided, "policy", *one_sequence([0.9], old=[0.1])), [-9.0])
    close(per_token(one_sided, "policy", *one_sequence([0.1], old=[0.2], advantage=-1.0)), [0.8])


def test_gspo():
    batch, policy = one_sequence([0.5, 0.1, 0.9], old=[0.4, 0.2, 0.9])
    found = per_token(GSPO(clip_low=9.0, clip_high=9.0), "policy", batch, policy)
    close(-found, [0.85498797] * 3)
    found.sum().backward()
    close(-policy.logprobs_BT.grad, [[0.85498797] * 3])


@pytest.mark.parametrize(
    ("kind", "low", "high", "expected"),
    [
        ("token_tis", 0.0, 2.0, [1.33333333, 0.8, 1.0]),
        ("token_tis", 0.0, 1.1, [1.1, 0.8, 1.0]),
        ("sequence_tis", 0.0, 2.0, [1.06666667]),
        ("sequence_tis", 0.0, 1.05, [1.05]),
        ("geometric_mis", 1.02174, 1.02175, [1.0]),
        ("geometric_mis", 1.0218, 2.0, [0.0]),
        ("token_mis", 0.9, 1.2, [0.0, 0.0, 1.0]),
        ("token_mis", 0.5, 2.0, [1.0, 1.0, 1.0]),
        ("sequence_mis", 1.0666, 1.0667, [1.0]),
    ],
)
def test_mismatch_corrections(kind, low, high, expected):
    batch, policy = one_sequence([0.7] * 3, old=[0.4, 0.2, 0.9], behavior=[0.3, 0.25, 0.9])
    algorithm = GRPO(old="learner", correction=kind, correction_low=low, correction_high=high)
    close(algorithm.terms()[0].weight(batch, policy)[0], expected)


@pytest.mark.parametrize(
    ("estimator", "values", "gradients"),
    [
        ("k1", [0.22314355, -0.69314718, 0.0], [1.0, 1.0, 1.0]),
        ("k2", [0.02489652, 0.24022651, 0.0], [0.22314355, -0.69314718, 0.0]),
        ("k3", [0.02314355, 0.30685282, 0.0], [0.2, -1.0, 0.0]),
        ("k3_plus", [0.02314355, 0.30685282, 0.0], [0.22314355, -0.69314718, 0.0]),
    ],
)
def test_kl_estimators(estimator, values, gradients):
    batch, policy = one_sequence([0.5, 0.1, 0.9], reference=[0.4, 0.2, 0.9])
    found = per_token(GRPO(kl_coefficient=1.0, kl_estimator=estimator), "kl", batch, policy)
    close(found, values)
    found.sum().backward()
    close(policy.logprobs_BT.grad[0], gradients)


def test_a_missing_reference_is_said():
    batch, policy = one_sequence([0.5])
    with pytest.raises(ValueError, match="reference"):
        GRPO(kl_coefficient=1.0).losses(batch, policy)
    assert GRPO(kl_coefficient=1.0).needs == {"reference"} and GRPO().needs == frozenset()


def test_log_probs_and_entropies_of_the_golden_logits():
    from srft_ray.train.logprobs import chunked_logprobs
    from tests.unit.test_algorithms import TOKENS

    head = torch.nn.Linear(4, 4, bias=False, dtype=torch.float64)
    torch.nn.init.eye_(head.weight)
    logprobs, entropies = chunked_logprobs(head, LOGITS.flatten(0, 1), TOKENS.flatten(), 1.0, None, False)
    close(
        logprobs[:8],
        [
            -0.27797837,
            -0.62652338,
            -1.66722416,
            -0.74366838,
            -0.34075295,
            -1.38629436,
            -0.74366838,
            -0.13920631,
        ],
    )
    close(
        entropies[:8],
        [0.80105637, 1.16440622, 1.3559945, 1.26830149, 0.91828377, 1.38629436, 1.26830149, 0.52906079],
    )
    close(
        [entropies[:3].mean(), entropies[3:6].mean(), entropies[6:8].mean()],
        [1.10715236, 1.19095987, 0.89868114],
    )


def test_entropy_and_its_gradient():
    from srft_ray.train.logprobs import chunked_logprobs

    head = torch.nn.Linear(4, 4, bias=False, dtype=torch.float64)
    torch.nn.init.eye_(head.weight)
    logits = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64, requires_grad=True)
    _, entropy = chunked_logprobs(head, logits, torch.tensor([0]), 1.0, None, True)
    close(entropy, [1.26830149])
    entropy.sum().backward()
    close(logits.grad, [[-0.24939321, 0.08313107, 0.08313107, 0.08313107]])
    assert not chunked_logprobs(head, logits, torch.tensor([0]), 1.0, None, False)[1].requires_grad


# demonstrations


def test_dft():
    close(
        per_token(DFT(), "sft_demo", *one_sequence([0.5, 0.1, 0.9], demo=True)),
        [0.34657359, 0.23025851, 0.09482446],
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.79056942]),
        ({"temperature": 2.0}, [0.625]),
        ({"level": "token"}, [1.25, 0.5]),
        ({"level": "token", "high": 1.2}, [1.2, 0.5]),
    ],
)
def test_iw_sft(settings, expected):
    batch, policy = one_sequence([0.5, 0.25], reference=[0.4, 0.5], demo=True)
    close(IWSFT(**settings).terms()[0].weight(batch, policy)[0], expected)


def test_luffy():
    batch, policy = one_sequence([0.5, 0.1, 0.9], demo=True)
    found = per_token(LUFFY(), "off_policy", batch, policy)
    close(-found, [0.83333333, 0.5, 0.9])
    found.sum().backward()
    close(-policy.logprobs_BT.grad, [[0.13888889, 0.25, 0.09]])
    batch, policy = one_sequence([0.5, 0.1, 0.9], behavior=[0.4, 0.2, 0.9])
    close(-per_token(LUFFY(old="behavior"), "on_policy", batch, policy), [1.25, 0.5, 1.0])  # no clip
    close(-per_token(LUFFY(old="behavior", clip=0.2), "on_policy", batch, policy), [1.2, 0.5, 1.0])


def test_luffy_divides_by_all_tokens():
    batch, policy = golden_batch(LUFFY()), policy_output(LOGITS)
    counts = LUFFY().counts(batch)
    assert counts["off_policy"] == counts["on_policy"] == 8
    batch.behavior_logprobs_BT = policy.logprobs_BT
    found = LUFFY().losses(batch, policy)
    close(found["on_policy"], -(1 / 3 * 3 - 2 / 3 * 2) / 8)


def test_rl_plus():
    batch, policy = one_sequence([0.5, 0.1, 0.9], old=[0.4, 0.2, 0.9], demo=True)
    term = RLPLUS().terms()[0]
    close(-term.loss(batch, policy)[0], [0.90909091, 0.25, 0.97297297])
    close(term.weight(batch, policy)[0], [0.70710678, 0.9486833, 0.31622777])


def test_chord():
    close(weights.uncertainty(*one_sequence([0.5, 0.1, 0.9]))[0], [0.25, 0.09, 0.09])
    mu = CHORDMu()
    close([mu.mu(step) for step in (0, 50, 100, 150, 200, 300)], [0.9, 0.77552, 0.475, 0.17448, 0.05, 0.05])
    assert CHORDMu(warmup_steps=10).mu(5) == 0.45
    assert [CHORDPhi(constant_mu=0.3).mu(step) for step in (0, 500)] == [0.3, 0.3]
    batch, policy = one_sequence([0.5], demo=True)
    batch.step = 100
    close(per_token(mu, "sft_demo", batch, policy), [0.475 * 0.69314718])
    close(per_token(CHORDPhi(), "sft_demo", batch, policy), [0.1 * 0.25 * 0.69314718])
    batch, policy = one_sequence([0.5], behavior=[0.5])
    batch.step = 100
    close(per_token(mu, "policy", batch, policy), [-0.525])


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("token_mean", 6.66666667),
        ("sequence_mean_token_sum", 20.0),
        ("sequence_mean_token_mean", 8.75),
        ("constant", 10.0),
        ("sequence_mean_constant", 5.0),
    ],
)
def test_norms(norm, expected):
    values = torch.tensor([[1.0, 2, 3, 4], [10, 20, math.nan, math.inf]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    batch = Batch(
        mask,
        torch.zeros(2, dtype=torch.bool),
        torch.ones(2),
        torch.ones(2),
        torch.zeros(2, 4),
        max_new_tokens=4,
    )
    term = Term("x", selections.rollouts, losses.nll, norm=norm, constant=4.0)
    total, _ = term.total(batch, PolicyOutput(-values, torch.zeros(2, 4)))
    close(total / term.denominator(term.count(batch)), expected)


# gates, prefixes, stages


@pytest.mark.parametrize(
    ("algorithm", "rewards", "demos", "trained"),
    [
        (HPT(), [0, 0], 1, [False, False, True]),
        (HPT(), [0, 1], 1, [True, True, False]),
        (HPT(gamma=0.5), [0, 1], 1, [False, False, True]),
        (HPT(), [0, 0], 0, [True, True]),
        (ReLIFT(), [0, 0], 1, [True, True, True]),
        (ReLIFT(), [0, 1], 1, [True, True, False]),
        (PrefixRFT(), [0, 1], 1, [True, True, False]),
        (RLWithSFTLoss(), [0, 1], 1, [True, True, True]),
    ],
)
def test_gates(algorithm, rewards, demos, trained):
    one = group(rewards, demos)
    assert [algorithm.trains_on(one, completion) for completion in one.completions] == trained


def test_truncated_responses_can_be_left_out():
    one = group([0, 1], 0)
    one.completions[1].finish_reason = "length"
    assert [GRPO(mask_truncated=True).trains_on(one, c) for c in one.completions] == [True, False]
    assert all(GRPO().trains_on(one, c) for c in one.completions)


def test_signal():
    assert [DAPO().has_signal(group(rewards, 0)) for rewards in ([0, 0], [1, 1], [0, 1], [1])] == [
        False,
        False,
        True,
        True,
    ]
    assert not SFT().has_signal(group([], 0)) and SFT().has_signal(group([], 1))
    assert all(GRPO().has_signal(group(rewards)) for rewards in ([0, 0], [1, 1]))


def test_prefixes_of_the_first_rollout():
    one, algorithm = group([0, 0], limit=64), PrefixRFT(decay_steps=100)
    assert {algorithm.prefix(one, 0, 0, random.Random(seed)) for seed in range(50)} == {
        18
    }  # ⌊0.95 · 20⌋, at most |y*| - 2
    later = {algorithm.prefix(one, 0, 100, random.Random(seed)) for seed in range(500)}
    assert later == set(range(19))
    one.max_new_tokens = 10
    assert algorithm.prefix(one, 0, 0, random.Random(0)) == 8, "room for the sampled end must remain"
    assert (
        algorithm.prefix(one, 1, 0, random.Random(0)) == 0
        and algorithm.prefix(group([0], 0), 0, 0, random.Random(0)) == 0
    )
    close([cosine(step, 0.95, 0.0, 100) for step in (0, 50, 100, 200)], [0.95, 0.475, 0.0, 0.0])


def test_only_the_most_uncertain_prefix_tokens_are_trained_on():
    batch, policy = one_sequence([0.5] * 8)
    batch.is_prefix_BT = torch.tensor([[True] * 6 + [False] * 2])
    policy.entropies_BT = torch.tensor([[0.1, 0.9, 0.3, 0.8, 0.2, 0.4, 5.0, 0.0]], dtype=torch.float64)
    close(
        PrefixRFT().terms()[0].weight(batch, policy)[0], [0, 1, 0, 1, 0, 0, 1, 1]
    )  # ⌈0.2 · 6⌉ = 2 of the prefix, and the rest


def test_sft_then_rl_has_the_settings_of_the_paper():
    two = SFTThenRL(first_steps=3)
    first, second = two.stage(2, 10), two.stage(3, 10)
    assert first.schedule == Schedule(5e-5, "cosine", 0.1, 0.1, 64, 1, 0.01) and second.schedule == Schedule(
        1e-6, "constant", 0.0, None, 128, 2
    )
    rl = second.algorithm
    assert (
        rl.standardize,
        rl.norm,
        rl.clip_low,
        rl.clip_high,
        rl.kl_coefficient,
        rl.entropy_coefficient,
    ) == (False, "token_mean", 0.2, 0.28, 0, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SRFT(entropy_granularity="tokens"),
            "entropy_granularity is 'tokens': choose one of token, sequence, batch",
        ),
        (lambda: GRPO(norm="mean"), "norm is 'mean'"),
        (lambda: GRPO(correction="token_tis"), "set old=learner"),
        (lambda: GRPO(norm="constant").terms(), "no constant is given"),
        (lambda: GRPO(clip_low=-0.1), "clip_low is -0.1: it must be at least 0"),
        (lambda: GRPO(correction_low=3.0), "nothing would be kept"),
        (lambda: DAPO(overlong_buffer=4096), "must be within 0 and 1"),
        (lambda: RLOO(clip_low=0.2), "rloo has no clip"),
        (lambda: RLOO(standardize=True), "no std"),
        (lambda: HPT(gamma=8), "gamma is 8"),
        (lambda: Schedule(warmup=100), "warmup is 100"),
        (lambda: Schedule(mini_batches=0), "mini_batches is 0"),
        (lambda: Schedule(lr_schedule="cos"), "choose one of constant, linear, cosine"),
        (lambda: SFTThenRL(first_steps=-1), "first_steps is -1"),
        (lambda: SFTThenRL(first_steps=4).stage(0, 4), "leaves nothing of 4 steps"),
        (lambda: SFTThenRL(first=SFTThenRL()), "cannot have stages"),
        (lambda: PrefixRFT(old="behavior"), "prefix_rft needs old=learner"),
        (lambda: Term("x", selections.rollouts, losses.nll, needs=("refrence",)), "needs of term 'x'"),
    ],
)
def test_wrong_settings_are_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
