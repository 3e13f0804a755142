"""Methods that look at all sequences of a step: statistics of the step, budgets, coefficients, pairs."""

import math
from dataclasses import replace

import pytest
import torch

from algorithms import (
    C3PO,
    DPO,
    GRPO,
    IPO,
    REINFORCEPP,
    Algorithm,
    Batch,
    CHORDAdaptive,
    ClipCov,
    Completion,
    Group,
    HPTSoft,
    KLCov,
    LitePPO,
    PolicyOutput,
    SequenceRecord,
    SimPO,
    Term,
    losses,
    selections,
    weights,
)
from algorithms.covariances import covariance, cutoff
from tests.unit.test_algorithms import close
from tests.unit.test_methods import group, one_sequence, per_token


def records_of(algorithm, *groups):
    """What the learner would gather of these groups, with one update."""
    found = []
    for group_id, one in enumerate(groups):
        credit = algorithm.advantages(one)
        for number, (completion, advantage) in enumerate(zip(one.completions, credit, strict=True)):
            found.append(
                SequenceRecord(
                    group_id,
                    number,
                    completion.origin,
                    0,
                    len(completion.ids),
                    completion.prefix,
                    completion.reward,
                    advantage,
                    algorithm.trains_on(one, completion),
                )
            )
    return found


def values(algorithm, *groups):
    return algorithm.sequence_values(records_of(algorithm, *groups))


def batch_with(**figures):
    """One sequence of two tokens with these values."""
    batch, policy = one_sequence([0.5, 0.5])
    batch.values = {name: torch.tensor([value], dtype=torch.float64) for name, value in figures.items()}
    return batch, policy


def test_a_missing_value_is_said():
    batch, policy = one_sequence([0.5])
    with pytest.raises(ValueError, match="have no value 'mu'"):
        weights.value("mu")(batch, policy)
    assert Algorithm().sequence_values([]) == {}
    with pytest.raises(ValueError, match="needs of term 'x'"):
        Term("x", selections.rollouts, losses.nll, needs=("value",))


# statistics of the step


def test_reinforce_pp_normalises_over_the_tokens_of_the_step():
    found = values(REINFORCEPP(), group([1, 0, 0], 0, lengths=[2, 1, 1]))["advantages"]
    close(found, [0.999998, -0.999998, -0.999998])  # mean 2/4, std 1/2
    found = values(REINFORCEPP(group_baseline=True), group([1, 0], 0), group([1, 1], 0))["advantages"]
    close(found, [1.41420956, -1.41420956, 0.0, 0.0])
    assert values(REINFORCEPP(), group([1], 0))["advantages"] == [0.0]


def test_lite_ppo_has_the_mean_of_the_group_and_the_std_of_the_step():
    found = values(LitePPO(), group([1, 0], 0), group([1, 1], 0))["advantages"]
    close(found, [0.999998, -0.999998, 0.0, 0.0])  # ±1/2 over 1/2
    with pytest.raises(ValueError, match="leave standardize=True"):
        LitePPO(standardize=False)


def test_adaptive_mu_falls_as_rewards_rise():
    for rewards, mu in (([0, 0], 0.5), ([1, 0, 0, 0], 0.25), ([1, 1], 0.0)):
        found = values(CHORDAdaptive(), group(rewards))
        close(found["mu"], [mu] * (len(rewards) + 1))
        close(found["one_minus_mu"], [1 - mu] * (len(rewards) + 1))
    batch, policy = batch_with(mu=0.25, one_minus_mu=0.75)
    close(per_token(CHORDAdaptive(), "policy", batch, policy), [-0.75, -0.75])
    close(per_token(CHORDAdaptive(), "sft_demo", batch, policy), [0.25 * 0.69314718] * 2)
    assert all(term.needs == ("values",) for term in CHORDAdaptive().terms())


@pytest.mark.parametrize(
    ("solved", "shares"),
    [
        (0, (1, 1)),
        (1, (0, 1)),
        (2, (0.125, 0.5)),
        (3, (0.25, 0.25)),
        (4, (0.5, 0.125)),
        (5, (1, 0)),
        (8, (1, 0)),
    ],
)
def test_hpt_soft_has_the_table_of_the_code(solved, shares):
    one = group([1] * solved + [0] * (8 - solved))
    found = values(HPTSoft(), group([1, 0, 0, 0]), one)
    assert set(zip(found["rl_share"][5:], found["sft_share"][5:], strict=True)) == {shares}
    assert (found["rl_share"][0], found["sft_share"][0]) == (0.125, 0.5)  # 1 of 4 is 2 of 8
    assert all(HPTSoft().trains_on(one, completion) for completion in one.completions)


def test_hpt_soft_weights_both_parts():
    batch, policy = batch_with(rl_share=0.25, sft_share=0.5)
    close(per_token(HPTSoft(), "policy", batch, policy), [-0.25, -0.25])
    close(per_token(HPTSoft(), "sft_demo", batch, policy), [0.5 * 0.69314718] * 2)
    close(per_token(HPTSoft(), "entropy", batch, policy), [0.0, 0.0])


# a budget of tokens


def test_c3po_keeps_exactly_the_budget():
    c3po, one = C3PO(token_budget=8), group([1, 0, 1], lengths=[3, 4, 5])
    kept = values(c3po, one)["kept"]
    assert sum(kept) == 8 and kept[3] == 0  # the demonstration
    assert sorted(k - n for k, n in zip(kept, (3, 4, 5), strict=False))[1:] == [0, 0] or 0 in kept[:3]
    assert values(C3PO(token_budget=99), one)["kept"] == [3, 4, 5, 0]
    two = [replace(record, update=record.sample % 2) for record in records_of(c3po, one)]
    kept = c3po.sequence_values(two)["kept"]
    assert (kept[0] + kept[2], kept[1]) == (8, 4), "each update has its own budget"


def test_c3po_selects_what_is_kept_and_divides_by_the_budget():
    batch, policy = one_sequence([0.5] * 3, old=[0.5] * 3)
    batch.values = {"kept": torch.tensor([2.0])}
    c3po = C3PO(token_budget=10)
    close(c3po.losses(batch, policy)["policy"], -2 / 10)
    close(GRPO(norm="token_mean", old="learner").losses(batch, policy)["policy"], -1.0)
    with pytest.raises(ValueError, match="divides by token_budget"):
        C3PO(norm_constant=5.0)


def test_c3po_keeps_what_the_policy_wrote_around_the_tokens_of_an_environment():
    batch, _ = one_sequence([0.5] * 8)
    batch.mask_BT[0, 2:5] = False
    for kept, selected in ((5, [0, 1, 5, 6, 7]), (3, [0, 1, 5]), (2, [0, 1]), (0, [])):
        batch.values = {"kept": torch.tensor([float(kept)])}
        chosen_BT = C3PO(token_budget=10).policy_term().select(batch)
        assert chosen_BT[0].nonzero().flatten().tolist() == selected


# pairs


def test_a_pair_is_the_best_and_the_worst():
    def trained(algorithm, one):
        return [number for number, c in enumerate(one.completions) if algorithm.trains_on(one, c)]

    assert trained(DPO(), group([0, 1, 0])) == [0, 3]  # the demonstration before a rollout that is as good
    assert trained(DPO(), group([0, 1, 0], 0)) == [0, 1]
    assert trained(DPO(), group([0, 0], 0)) == [] and trained(DPO(), group([1, 1])) == []
    assert DPO().uses_demonstrations and not DPO(with_demonstrations=False).uses_demonstrations


def two_pairs():
    """Four sequences of uneven length in two pairs: log-probs (with gradient) by policy and reference."""
    torch.manual_seed(0)
    lengths = torch.tensor([3, 5, 4, 2])
    mask_BT = torch.arange(5)[None] < lengths[:, None]
    logprobs_BT = (-torch.rand(4, 5, dtype=torch.float64)).requires_grad_()
    reference_BT = -torch.rand(4, 5, dtype=torch.float64)
    batch = Batch(mask_BT, torch.zeros(4, dtype=torch.bool), torch.ones(4), torch.zeros(4), torch.zeros(4, 5))
    return batch, PolicyOutput(logprobs_BT, torch.zeros(4, 5), reference_logprobs_BT=reference_BT), lengths


def direct(kind, s, r, n):
    """The loss of two pairs (0 better than 1, 2 better than 3) as its paper writes it."""
    better, worse = [0, 2], [1, 3]
    margin = (s - r)[better] - (s - r)[worse]
    if kind == "dpo":
        return -torch.nn.functional.logsigmoid(0.1 * margin).mean()
    if kind == "ipo":
        return ((margin - 5) ** 2).mean()
    means = s / n
    return -torch.nn.functional.logsigmoid(2 * (means[better] - means[worse]) - 1).mean()


@pytest.mark.parametrize("algorithm", [DPO(), IPO(), SimPO()], ids=lambda a: a.name)
def test_losses_of_pairs_have_the_value_and_the_gradient_of_the_paper(algorithm):
    batch, policy, lengths = two_pairs()
    s = (policy.logprobs_BT * batch.mask_BT).sum(-1)
    r = (policy.reference_logprobs_BT * batch.mask_BT).sum(-1)
    expected = direct(algorithm.name, s, r, lengths)
    wanted = torch.autograd.grad(expected, policy.logprobs_BT)[0]
    records = [
        SequenceRecord(
            i // 2, i % 2, "rollout", 0, int(n), 0, 1.0 - i % 2, 0.0, True, float(s[i].detach()), float(r[i])
        )
        for i, n in enumerate(lengths)
    ]
    figures = algorithm.sequence_values(records)
    batch.values = {name: torch.tensor(values, dtype=torch.float64) for name, values in figures.items()}
    found = algorithm.losses(batch, policy)["pairs"]
    close(found.detach(), expected.detach())
    found.backward()
    close(policy.logprobs_BT.grad, wanted)
    assert algorithm.counts(batch)["pairs"] == 2


def test_the_logistic_loss_does_not_overflow():
    assert losses.logistic(800.0) == (0.0, -0.0) and losses.logistic(-800.0) == (800.0, -1.0)
    close(losses.logistic(0.15), [0.62095696, -0.46257015])


def test_a_dpo_pair_by_hand():
    """β = 0.1, log-ratios 1 and -0.5: margin 1.5."""
    better = SequenceRecord(0, 0, "demo", 0, 4, 0, 1.0, 0.0, True, -1.0, -2.0)
    worse = SequenceRecord(0, 1, "rollout", 0, 4, 0, 0.0, 0.0, True, -3.0, -2.5)
    found = DPO().sequence_values([better, worse])
    close(found["loss"], [0.62095696, 0.0])
    close(found["slope"], [-0.046257015, 0.046257015])
    assert found["chosen"] == [1.0, 0.0]


def test_identical_responses_are_two_completions():
    one = Group(
        0,
        0,
        "",
        [],
        "",
        completions=[Completion(i, "rollout", "", [1], reward=r) for i, r in ((0, 0.0), (1, 1.0), (2, 0.0))],
    )
    one.completions[2] = replace(one.completions[0])
    assert [DPO().trains_on(one, completion) for completion in one.completions] == [True, True, False]


# covariances of advantage and log-prob


def covariances_batch(logprobs, advantages, **figures):
    """Two rollouts of two tokens."""
    logprobs_BT = torch.tensor(logprobs, dtype=torch.float64).requires_grad_()
    mask_BT = torch.ones(2, 2, dtype=torch.bool)
    credit = torch.tensor(advantages, dtype=torch.float64)
    old_BT = torch.zeros(2, 2, dtype=torch.float64)
    batch = Batch(mask_BT, torch.zeros(2, dtype=torch.bool), torch.ones(2), credit, old_BT)
    batch.values = {name: torch.full((2,), value, dtype=torch.float64) for name, value in figures.items()}
    return batch, PolicyOutput(logprobs_BT, torch.zeros(2, 2))


def test_the_means_of_the_update_are_over_its_rollout_tokens():
    records = [
        SequenceRecord(0, 0, "rollout", 0, 3, 0, 1.0, 1.0, True, -6.0),
        SequenceRecord(0, 1, "rollout", 0, 1, 0, 0.0, -1.0, True, -2.0),
        SequenceRecord(0, 2, "demo", 0, 9, 0, 1.0, 5.0, True, -9.0),
        SequenceRecord(1, 0, "rollout", 1, 2, 0, 0.0, 0.5, True, -1.0),
    ]
    found = ClipCov().sequence_values(records)
    close(found["mean_advantage"], [0.5, 0.5, 0.5, 0.5])
    close(found["mean_logprob"], [-2.0, -2.0, -2.0, -0.5])
    assert len(set(found["draw"])) == 4 and max(found["draw"]) < 2**20


def test_covariances_by_hand():
    batch, policy = covariances_batch([[-1, -3], [-1, -3]], [1, -1], mean_advantage=0.0, mean_logprob=-2.0)
    close(covariance(batch, policy).flatten(), [1, -1, -1, 1])
    batch.is_demo_B = torch.tensor([False, True])
    assert covariance(batch, policy)[1].tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2.5), (0.25, 3.5), (0.0, 3.5), (0.8, 1.5), (1.0, 0.0)])
def test_the_cutoff_is_between_what_is_chosen_and_the_next(share, expected):
    scores = torch.tensor([1.0, 4, 3, 2], dtype=torch.float64)
    assert cutoff(scores, share) == expected
    few = torch.tensor([1.0, *[-math.inf] * 3], dtype=torch.float64)
    assert cutoff(few, 0.9) == 0.0 and cutoff(few[1:], 0.9) == math.inf


def test_clip_cov_takes_the_gradient_from_chosen_tokens():
    figures = {"mean_advantage": 0.0, "mean_logprob": -2.0, "draw": 7.0}
    batch, policy = covariances_batch([[-1, -3], [-1, -3]], [1, -1], **figures)
    clip_cov = ClipCov(share=0.5, lowest=0.5)
    scores = clip_cov.score(batch, policy)
    assert (scores > -math.inf).tolist() == [[True, False], [False, True]]
    assert torch.equal(scores, clip_cov.score(batch, policy))
    batch.values = batch.values | {"cutoff": torch.full((2,), cutoff(scores.flatten(), 0.25)).double()}
    weight = clip_cov.terms()[0].weight(batch, policy)
    assert weight.sum() == 3 and weight[0, 1] == weight[1, 0] == 1
    clip_cov.losses(batch, policy)["policy"].backward()
    assert (policy.logprobs_BT.grad == 0).sum() == 1


def test_clip_cov_does_not_choose_what_the_ratio_stops():
    figures = {"mean_advantage": 0.0, "mean_logprob": -2.0, "draw": 7.0}
    batch, policy = covariances_batch([[-1, -3], [-1, -3]], [1, -1], **figures)
    policy.old_logprobs_BT = policy.logprobs_BT.detach() - torch.tensor([[1.0, 0], [0, 0]])  # ratio e
    assert (ClipCov(lowest=0.5).score(batch, policy) > -math.inf).tolist() == [[False, False], [False, True]]


def test_kl_cov_adds_a_distance_to_the_chosen_tokens():
    figures = {"mean_advantage": 0.0, "mean_logprob": -2.0, "cutoff": 0.5}
    batch, policy = covariances_batch([[-1, -3], [-1, -3]], [1, -1], **figures)
    policy.old_logprobs_BT = policy.logprobs_BT.detach() - torch.tensor([[0.2, 0.2], [0.2, -0.3]])
    found = KLCov(kl_weight=2.0).losses(batch, policy)
    close(found["kl_cov"].detach(), 2 * (0.2 + 0.3) / 4)
    ratios = [math.exp(0.2), math.exp(0.2), -math.exp(0.2), -math.exp(-0.3)]
    close(found["policy"].detach(), -sum(ratios) / 4)  # without a clip
    found["kl_cov"].backward()
    close(policy.logprobs_BT.grad, [[0.5, 0], [0, -0.5]])
