"""Presets are what they are called: each known difference from paper or code is corrected, or it is said.

What is said is checked where users read it: in `srft-ray algorithms NAME`.
"""

import math

import pytest
import torch

from algorithms import (
    DAPO,
    GRPO,
    HPT,
    LUFFY,
    RLOO,
    RLPLUS,
    SRFT,
    SRFTHPT,
    CHORDMu,
    CHORDPhi,
    DrGRPO,
    ReLIFT,
    RLWithSFTLoss,
    SFTThenRL,
)
from algorithms.credit import group_advantages, overlong_penalty, repetition
from srft_ray.commands.list_algorithms import describe, markdown
from tests.unit.test_algorithms import close
from tests.unit.test_methods import group, losses_of, one_sequence, per_token


def term(algorithm, name):
    return next(term for term in algorithm.terms() if term.name == name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("srft_hpt", "norm_constant = L·D·K"),
        ("srft_authors", "fyqqyf/SRFT, commit 8d4e10a"),
        ("srft_authors", "was not verified against it"),
        ("srft_without_w_sft", "w_SFT fixed at 0.1"),
        ("rl_sft", "rollout.num_rollouts=7"),
        ("rl_sft", "divided by the number of sequences B too"),
        ("hpt", "the paper's text has a clipped surrogate"),
        ("hpt", "B/(D·K) times the proportion"),
        ("relift", "an Adam state of its own"),
        ("relift", "gradients are clipped at learner.max_grad_norm (the example: 0.5)"),
        ("relift", "no update is skipped"),
        ("relift", "a bad format has no reward of its own"),
        ("chord_mu", "a dual clip of 3"),
        ("dapo", "The authors' rewards are 1 and -1"),
        ("prefix_rft", "their launch values are not public"),
        ("grpo", "papers and their codes have `old: learner`"),
        ("rl_plus", "a uniform policy, for which the code's 1 stands in"),
        ("rl_plus", "rollout.num_rollouts=7"),
        ("rloo", "the paper's reward includes -β · KL"),
        ("iw_sft", "τ applies to `level: token` too"),
        ("luffy", "A group of one has Â = 0 (the code: R)"),
        ("rl_plus", "a group of one has Â = 0 (the code: R)"),
        ("sft_then_rl", "a weight decay of 0.01"),
        ("srft", "it has no lower bound"),
    ],
)
def test_deviations_are_said(name, said):
    assert said in " ".join(describe(name).split())


def test_the_page_says_whose_old_policy_papers_use():
    assert "π_old" in markdown().split("| name |")[0]


def test_srft_hpt_has_the_proportion_of_that_code_with_the_stated_constant():
    """A1. Four micro-batches on two ranks, each with a demonstration and a rollout of two tokens."""
    batch, policy = one_sequence([0.5, 0.25], demo=True)
    width, ranks, own, tokens = 2, 2, 2, 2
    nll = -policy.logprobs_BT.sum() / tokens
    rl = float(term(SRFTHPT(), "rl_demo").total(batch, policy)[0].detach())
    # Each micro-batch adds its mean NLL and its RL sum over the width; the ranks' sums are averaged.
    theirs = {"sft": ranks * own * nll / ranks, "rl": ranks * own * rl / width / ranks}
    said = SRFTHPT(norm_constant=float(width * ranks * own))
    divided = float(term(said, "rl_demo").denominator(torch.tensor(0.0)))
    ours = {"sft": nll, "rl": ranks * own * rl / divided}
    close(ours["rl"] / ours["sft"], theirs["rl"] / theirs["sft"])


def test_rl_sft_has_the_settings_of_its_script():
    """A3."""
    one = RLWithSFTLoss()
    assert (one.standardize, one.clip_low, one.clip_high) == (False, None, None)
    assert (one.norm, term(one, "entropy").select.__name__) == ("sequence_mean_constant", "everything")


def test_hpt_has_no_clip_and_the_bonus_of_all_tokens():
    """A4."""
    assert (HPT().clip_low, HPT().clip_high, HPT().standardize) == (None, None, False)
    assert term(HPT(), "entropy").select.__name__ == "everything"


def test_relift_has_the_settings_of_the_published_example():
    """A5."""
    one = ReLIFT()
    found = (one.standardize, one.norm, one.clip_low, one.clip_high, one.entropy_coefficient)
    assert found == (False, "token_mean", 0.2, 0.28, 0.0)


@pytest.mark.parametrize("cls", [CHORDMu, CHORDPhi])
def test_chord_has_a_token_mean_and_a_dual_clip(cls):
    """A6."""
    assert (cls().norm, cls().dual_clip) == ("token_mean", 3.0)


def test_dapos_full_penalty_is_half_of_the_range_of_rewards():
    """A7: a correct answer at the limit ranks above a wrong short one."""
    late_and_right, early_and_wrong = DAPO().advantages(group([1, 0], 0, lengths=[100, 10], limit=100))
    assert late_and_right > early_and_wrong
    shaped = [DAPO().overlong_factor * overlong_penalty(100, 100, 20), 0.0]
    close(shaped[0], -0.5)


@pytest.mark.parametrize("cls", [LUFFY, RLPLUS, DAPO, DrGRPO, RLWithSFTLoss, HPT, ReLIFT, CHORDMu])
def test_presets_recompute_the_old_policy(cls):
    """A9."""
    assert cls().old == "learner"
    assert SFTThenRL().second.old == "learner" and GRPO().old == "behavior"


def test_a_constant_denominator_can_be_given():
    """A13."""
    one = GRPO(norm="constant", norm_constant=64.0, kl_coefficient=0.1)
    assert [term(one, name).constant for name in ("policy", "kl")] == [64.0, 64.0]


def test_the_overlong_penalty_ends_at_the_factor():
    """A14."""
    assert [overlong_penalty(length, 100, 20, 2.0) for length in (80, 90, 100, 150)] == [0, -1, -2, -2]


def test_a_group_of_one_has_no_advantage():
    """A15."""
    assert group_advantages([1.0]) == [0.0]


def test_a_stage_has_its_own_weight_decay():
    """A16."""
    two = SFTThenRL(first_steps=3)
    assert [two.stage(step, 10).schedule.weight_decay for step in (0, 3)] == [0.01, None]


# rewards


def test_rewards_can_be_scaled_shifted_and_lose_what_is_repeated():
    one = group([1, 0], 0)
    close(DrGRPO(reward_scale=2.0, reward_shift=-1.0).advantages(one), [1.0, -1.0])
    assert RLOO(reward_scale=2.0).advantages(one) == [2.0, -2.0]
    one.completions[0].ids = [1, 2, 1, 2, 1]  # of four pairs two are new
    assert (repetition([1, 2, 1, 2, 1], 2), repetition([1], 2), repetition([1, 1], 1)) == (0.5, 0.0, 0.5)
    one.completions[1].ids = [1, 2, 3]
    shaped = DrGRPO(repetition_penalty=0.5, repetition_length=2)
    close(shaped.advantages(one), [0.375, -0.375])  # rewards 0.75 and 0
    close(
        DAPO(reward_scale=2.0, reward_shift=-1.0).shaped_reward(group([1], limit=100), one.completions[0]),
        1.0,
    )


# A18: the bounds of SRFT's negative term


def negative(p, **settings):
    batch, policy = one_sequence(p, old=[0.5] * len(p), advantage=-1.0)
    batch.rewards_B = torch.zeros(1)
    found = per_token(SRFT(**settings), "rl_negative", batch, policy)
    found.sum().backward()
    return found, policy.logprobs_BT.grad[0]


def test_srfts_bounds_are_off_by_default():
    found, gradient = negative([0.5, 0.001])
    close(found, [math.log(0.5), math.log(0.001)])
    close(gradient, [1.0, 1.0])


def test_srfts_negative_coefficient():
    found, gradient = negative([0.5, 0.001], negative_coefficient=0.25)
    close(found, [0.25 * math.log(0.5), 0.25 * math.log(0.001)])
    close(gradient, [0.25, 0.25])


def test_srfts_floor_on_log_probs():
    found, gradient = negative([0.5, 0.001], min_logprob=-5.0)
    close(found, [math.log(0.5), 0.0])  # log 0.001 = -6.9
    close(gradient, [1.0, 0.0])


def test_srfts_clip_of_the_ratio():
    found, gradient = negative([0.45, 0.3, 0.9], self_rollout_surrogate="ratio", ratio_clip=0.2)
    close(found, [0.9, 0.8, 1.8])
    close(gradient, [0.9, 0.0, 1.8])
    batch, policy = one_sequence([0.45, 0.9], old=[0.5, 0.5])
    srft = SRFT(self_rollout_surrogate="ratio", ratio_clip=0.2, rl_scale=1.0, rl_entropy_sign=0.0)
    close(per_token(srft, "rl_positive", batch, policy), [-0.9, -1.2])
    with pytest.raises(ValueError, match="set self_rollout_surrogate=ratio"):
        SRFT(ratio_clip=0.2)


def test_srfts_bounds_change_no_other_term():
    full, bounded = losses_of(SRFT()), losses_of(SRFT(negative_coefficient=0.5, min_logprob=-9.0))
    for name in ("sft_demo", "rl_demo", "rl_positive"):
        assert float(full[name]) == float(bounded[name])
    close(bounded["rl_negative"], 0.5 * full["rl_negative"])


def test_tokens_above_a_probability_can_be_left_out():
    batch, policy = one_sequence([0.4, 0.9], old=[0.4, 0.9])
    close(per_token(GRPO(old="learner", max_probability=0.8), "policy", batch, policy), [-1.0, 0.0])
    close(per_token(GRPO(old="learner"), "policy", batch, policy), [-1.0, -1.0])
