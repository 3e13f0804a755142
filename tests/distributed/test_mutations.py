"""The proof of invariant 1 fails when something is broken on purpose.

Each fault is a context that every rank enters.
"""

import copy
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from algorithms import C3PO, DPO, PPO, REINFORCEPP, SFTKL, SRFT, T1, ExGRPO
from tests.distributed.harness import Case, calibrated, difference, reference, run
from tests.distributed.test_exact_update import TOLERANCE


@contextmanager
def nothing(model):
    yield


@contextmanager
def local_denominator(model):
    """Every rank divides by its own counts."""
    from srft_ray.train import learner

    def local(algorithm, micro_batches):
        counts = [algorithm.counts(m.batch) for m in micro_batches]
        return {name: torch.stack([c[name] for c in counts]).sum() for name in counts[0]}

    with patch.object(learner, "global_counts", local):
        yield


@contextmanager
def mean_of_micro_batch_means(model):
    """Every micro-batch divides by its own counts, their number divides the sum (arXiv 2604.23747, bug 2)."""
    from srft_ray.train import learner

    loss = learner.add_loss

    def local(algorithm, micro_batch, policy, counts, totals):
        return loss(algorithm, micro_batch, policy, algorithm.counts(micro_batch.batch), totals) / 4

    with patch.object(learner, "add_loss", local):
        yield


@contextmanager
def dropped_micro_batch(model):
    from srft_ray.train.learner import Learner

    cut = Learner.micro_batches
    with patch.object(Learner, "micro_batches", lambda self, *args: cut(self, *args)[1:]):
        yield


@contextmanager
def missing_tied_weight(model):
    """The head is left out where it is the embedding, as named_parameters() does."""
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine

    weights = DeepSpeedEngine.weights
    with patch.object(
        DeepSpeedEngine,
        "weights",
        lambda self: (pair for pair in weights(self) if pair[0] != "lm_head.weight"),
    ):
        yield


@contextmanager
def wrong_temperature(model):
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine

    forward = DeepSpeedEngine.forward

    def at_one(self, ids, rows, positions, temperature, *more):
        return forward(self, ids, rows, positions, 1.0, *more)

    with patch.object(DeepSpeedEngine, "forward", at_one):
        yield


@contextmanager
def stale_entropy(model):
    """Weights of the second step come from the entropies of the policy before the first."""
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine
    from srft_ray.train.policy_model import PolicyModel

    forward, before = DeepSpeedEngine.forward, PolicyModel(copy.deepcopy(model), 64)

    def stale(self, *inputs):
        with torch.no_grad():
            entropies = before(*inputs)[1]
        return forward(self, *inputs)[0], entropies

    with patch.object(DeepSpeedEngine, "forward", stale):
        yield


@contextmanager
def averaged_over_ranks(model):
    """DeepSpeed's division by the number of ranks is not undone."""
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine

    backward = DeepSpeedEngine.backward
    with patch.object(
        DeepSpeedEngine, "backward", lambda self, loss, last: backward(self, loss / self.world_size, last)
    ):
        yield


@contextmanager
def a_budget_for_each_rank(model):
    """The groups of each rank are cut apart from those of the other."""
    from srft_ray.train import sequence_values

    gather = sequence_values.gather

    def apart(*args):
        return [replace(record, update=record.group_id % 2) for record in gather(*args)]

    with patch.object(sequence_values, "gather", apart):
        yield


@contextmanager
def statistics_of_a_part(model):
    """The mean and std of the rewards are those of the first rollouts of the step only."""
    whole = REINFORCEPP.center_and_scale

    def part(self, rollouts):
        return whole(self, rollouts[: len(rollouts) // 2])

    with patch.object(REINFORCEPP, "center_and_scale", part):
        yield


@contextmanager
def one_token_more(model):
    """The rollout that the budget cuts keeps one token too many."""
    cut = C3PO._cut

    def longer(self, records, numbers, kept):
        cut(replace(self, token_budget=self.token_budget + 1), records, numbers, kept)

    with patch.object(C3PO, "_cut", longer):
        yield


@contextmanager
def wrong_pair(model):
    """The worse response of a pair is taken for the better one."""
    loss = DPO.pair_loss

    def swapped(self, better, worse):
        value, slopes = loss(self, worse, better)
        return value, slopes

    with patch.object(DPO, "pair_loss", swapped):
        yield


@contextmanager
def margins_that_stay_zero(model):
    """The log-probs of the pairs are never looked up."""
    from srft_ray.train import sequence_values

    with patch.object(sequence_values, "refresh", lambda *args: None):
        yield


@contextmanager
def kl_without_gradient(model):
    from srft_ray.train.deepspeed_engine import DeepSpeedEngine

    forward = DeepSpeedEngine.forward

    def detached(self, *inputs):
        logprobs, entropies, *kl = forward(self, *inputs)
        return logprobs, entropies, *(each.detach() for each in kl)

    with patch.object(DeepSpeedEngine, "forward", detached):
        yield


@contextmanager
def reference_that_stays(model):
    from srft_ray.train.reference import ReferenceModel

    with patch.object(ReferenceModel, "follow", lambda self, weights, rate, step: None):
        yield


@contextmanager
def advantages_of_a_rank(model):
    """Each rank standardizes the advantages of its own tokens."""
    from srft_ray.train import critic

    with patch.object(critic, "all_reduce", lambda sums: {name: sums[name].double() for name in sums}):
        yield


@contextmanager
def a_critic_that_does_not_learn(model):
    from srft_ray.train.critic import CriticEngine

    with patch.object(CriticEngine, "step", lambda self, lr: 0.0):
        yield


@contextmanager
def replays_taken_for_rollouts(model):
    from srft_ray.train import batching

    collate = batching.collate

    def forgetful(*args):
        micro_batch = collate(*args)
        micro_batch.batch.is_replay_B = None
        return micro_batch

    with patch.object(batching, "collate", forgetful):
        yield


FAULTS_OF = (  # with the algorithm in whose update they are seen
    (a_budget_for_each_rank, C3PO(token_budget=40)),
    (statistics_of_a_part, REINFORCEPP()),
    (one_token_more, C3PO(token_budget=40)),
    (wrong_pair, DPO(beta=1.0)),
    (margins_that_stay_zero, DPO(beta=1.0)),
    (kl_without_gradient, SFTKL()),
    (advantages_of_a_rank, PPO()),
    (a_critic_that_does_not_learn, PPO()),
    (replays_taken_for_rollouts, ExGRPO()),
    (reference_that_stays, T1(anchor_every=1, kl_coefficient=0.5, kl_estimator="k2")),
)
FAULTS = (
    local_denominator,
    mean_of_micro_batch_means,
    dropped_micro_batch,
    missing_tied_weight,
    wrong_temperature,
    stale_entropy,
    averaged_over_ranks,
)


@pytest.fixture(scope="module")
def differences(tiny_model):
    """From the float64 reference, of a case of two steps with each fault."""
    case = calibrated(tiny_model, Case(SRFT(), zero_stage=1, micro_batch_tokens=40, temperature=0.7, steps=2))
    truth, faults = reference(tiny_model, case), (nothing, *FAULTS)
    results = run(tiny_model, 2, [case] * len(faults), faults)
    return {fault: difference(state, truth) for fault, (state, _) in zip(faults, results, strict=True)}


def test_without_a_fault_the_proof_holds(differences, capsys):
    with capsys.disabled():
        print(f"\nwithout a fault: {differences[nothing]:.1e}")
    assert differences[nothing] <= TOLERANCE


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_makes_the_proof_fail(differences, fault, capsys):
    with capsys.disabled():
        print(f"\n{fault.__name__}: {differences[fault]:.1e}")
    assert differences[fault] > 100 * TOLERANCE


@pytest.fixture(scope="module")
def pairs_of_differences(tiny_model):
    """Without a fault and with it, of two steps of each algorithm of FAULTS_OF."""
    cases = [
        calibrated(tiny_model, Case(algorithm, zero_stage=1, micro_batch_tokens=40, steps=2))
        for _, algorithm in FAULTS_OF
    ]
    faults = [fault for fault, _ in FAULTS_OF]
    results = run(tiny_model, 2, cases * 2, [nothing] * len(cases) + faults)
    truths = [reference(tiny_model, case) for case in cases]
    found = [difference(state, truth) for (state, _), truth in zip(results, truths * 2, strict=True)]
    return list(zip(found[: len(cases)], found[len(cases) :], strict=True))


@pytest.mark.parametrize("number", range(len(FAULTS_OF)), ids=[fault.__name__ for fault, _ in FAULTS_OF])
def test_a_fault_in_what_sequences_share_makes_the_proof_fail(pairs_of_differences, number, capsys):
    right, wrong = pairs_of_differences[number]
    with capsys.disabled():
        print(f"\n{FAULTS_OF[number][0].__name__}: {right:.1e} without and {wrong:.1e} with the fault")
    assert right <= TOLERANCE and wrong > 100 * TOLERANCE
