"""KL to a reference over the whole vocabulary: in the chunked head, as a term, and as a method."""

import pytest
import torch

from algorithms import GRPO, REGISTRY, SDFT, SFTKL, Completion, Group, OnPolicyDistillation
from srft_ray.train.batching import collate
from srft_ray.train.logprobs import ReferenceLogits, chunked_logprobs
from srft_ray.train.teachers import shown_demonstrations
from tests.unit.test_algorithms import LOGITS, TOKENS, close
from tests.unit.test_methods import group, one_sequence, per_token


def heads(bias=True):
    """A policy's head, a reference's, and hidden states of both for nine tokens."""
    torch.manual_seed(0)
    policy, reference = (torch.nn.Linear(5, 11, bias=bias, dtype=torch.float64) for _ in range(2))
    hidden, known = (torch.randn(9, 5, dtype=torch.float64) for _ in range(2))
    return policy, reference, hidden.requires_grad_(), known


@pytest.mark.parametrize("chunk_mb", [64, 4 * 11 * 2 / 2**20])  # one chunk, and chunks of two tokens
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_head_gives_the_kl_of_whole_distributions(chunk_mb, temperature):
    policy, reference, hidden, known = heads()
    targets = torch.arange(9)
    logits = ReferenceLogits.of(reference, known)
    logprobs, entropies, kl = chunked_logprobs(
        policy, hidden, targets, temperature, chunk_mb, references=(logits,)
    )
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=policy(hidden) / temperature),
        torch.distributions.Categorical(logits=reference(known) / temperature),
    )
    close(kl.detach(), expected.detach())
    inputs = (hidden, policy.weight, policy.bias)
    wanted, found = (torch.autograd.grad(each.sum(), inputs) for each in (expected, kl))
    for one, other in zip(found, wanted, strict=True):
        close(one, other)
    plain = chunked_logprobs(policy, hidden, targets, temperature, chunk_mb)
    close(plain[0].detach(), logprobs.detach())
    close(plain[1], entropies)


def test_a_head_without_bias_and_a_partitioned_weight():
    _, reference, _, known = heads(bias=False)
    whole = ReferenceLogits.of(reference, known)
    assert whole.bias_V is None and whole.weight_VH is reference.weight
    reference.weight.ds_id = 0  # as ZeRO-3 marks what it partitions
    kept = ReferenceLogits.of(reference, known)
    assert kept.weight_VH is not reference.weight and torch.equal(kept.weight_VH, reference.weight)


def test_kl_by_hand():
    """π = softmax(1, 0, 0, 0) and a uniform reference: log 4 - H."""
    head = torch.nn.Linear(4, 4, bias=False, dtype=torch.float64)
    torch.nn.init.eye_(head.weight)
    uniform = ReferenceLogits.of(head, torch.zeros(1, 4, dtype=torch.float64))
    *_, kl = chunked_logprobs(head, LOGITS[1, :1], TOKENS[1, :1], 1.0, 64, references=(uniform,))
    close(kl.detach(), [1.38629436 - 1.26830149])


def test_sft_kl():
    batch, policy = one_sequence([0.5, 0.25], demo=True)
    policy.reference_kl_BT = torch.tensor([[0.3, 0.1]], dtype=torch.float64, requires_grad=True)
    found = SFTKL().losses(batch, policy)
    close([found["sft_demo"].detach(), found["kl"].detach()], [1.03972077, 0.2 * 0.2])
    found["kl"].backward()
    close(policy.reference_kl_BT.grad[0], [0.1, 0.1])
    assert SFTKL().needs == {"reference_kl"} and SFTKL().uses_reference and not SFTKL().uses_rollouts


def test_distillation_is_the_mean_kl_of_sampled_tokens():
    batch, policy = one_sequence([0.5, 0.25])
    policy.reference_kl_BT = torch.tensor([[0.3, 0.1]], dtype=torch.float64)
    close(OnPolicyDistillation().losses(batch, policy)["kl"], 0.2)


def test_the_full_kl_of_the_grpo_family():
    batch, policy = one_sequence([0.5, 0.25])
    policy.reference_kl_BT = torch.tensor([[0.3, 0.1]], dtype=torch.float64)
    grpo = GRPO(kl_coefficient=0.5, kl_estimator="full")
    close(per_token(grpo, "kl", batch, policy), [0.15, 0.05])
    assert grpo.needs == {"reference_kl"}


def test_a_missing_kl_is_said():
    with pytest.raises(ValueError, match=r"needs=\('reference_kl',\)"):
        SFTKL().losses(*one_sequence([0.5], demo=True))


def test_who_uses_a_reference():
    users = {name for name, cls in REGISTRY.items() if cls().uses_reference}
    assert users == {"iw_sft", "sft_kl", "distill", "dpo", "ipo", "uft", "r3", "t1", "sft_then_dpo"}


def test_sdft_learns_from_itself_with_the_demonstration():
    batch, policy = one_sequence([0.5, 0.25])
    policy.teacher_kl_BT = torch.tensor([[0.3, 0.1]], dtype=torch.float64)
    close(SDFT().losses(batch, policy)["distill"], 0.2)
    one = group([0, 1])
    assert [SDFT().trains_on(one, completion) for completion in one.completions] == [True, True, False]
    assert not SDFT().trains_on(group([0], 0), group([0], 0).completions[0])
    assert SDFT().needs == {"teacher_kl"} and not SDFT().uses_reference
    with pytest.raises(ValueError, match=r"needs=\('teacher_kl',\)"):
        SDFT().losses(*one_sequence([0.5]))


def test_the_teacher_sees_the_demonstration_and_scores_the_same_tokens():
    demo = Completion(9, "demo", "", [7, 8])
    shown = Group(
        0, 0, "", [1, 2], "", completions=[Completion(0, "rollout", "", [3, 4, 5], [0.0] * 3), demo]
    )
    alone = Group(0, 1, "", [1], "", completions=[Completion(0, "rollout", "", [6], [0.0])])
    micro_batch = collate([(shown, shown.completions[0]), (alone, alone.completions[0])], 0)
    input_ids, rows, positions = shown_demonstrations(micro_batch)
    assert input_ids.tolist() == [[1, 2, 7, 8, 1, 2, 3, 4, 5], [1, 6, 0, 0, 0, 0, 0, 0, 0]]
    plain = micro_batch.input_ids_BL[micro_batch.rows_N, micro_batch.positions_N]
    assert input_ids[rows, positions].tolist() == plain.tolist() == [3, 4, 5, 6]
    empty = collate([], 0)
    assert shown_demonstrations(empty)[0] is empty.input_ids_BL
