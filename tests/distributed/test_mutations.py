"""The proof of invariant 1 fails when something is broken on purpose.

Each fault is a context that every rank enters.
"""

import copy
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch

from algorithms import SRFT
from tests.distributed.harness import Case, calibrated, difference, reference, run
from tests.distributed.test_exact_update import TOLERANCE


@contextmanager
def nothing(model):
    yield


@contextmanager
def local_denominator(model):
    """Every rank divides by its own counts."""
    from srft_ray.train.learner import Learner

    def local(self, algorithm, micro_batches):
        counts = [algorithm.counts(m.batch) for m in micro_batches]
        return {name: torch.stack([c[name] for c in counts]).sum() for name in counts[0]}

    with patch.object(Learner, "_global_counts", local):
        yield


@contextmanager
def mean_of_micro_batch_means(model):
    """Every micro-batch divides by its own counts, their number divides the sum (arXiv 2604.23747, bug 2)."""
    from srft_ray.train.learner import Learner

    loss = Learner._loss

    def local(self, algorithm, micro_batch, policy, counts, totals):
        return loss(self, algorithm, micro_batch, policy, algorithm.counts(micro_batch.batch), totals) / 4

    with patch.object(Learner, "_loss", local):
        yield


@contextmanager
def dropped_micro_batch(model):
    from srft_ray.train.learner import Learner

    cut = Learner._cut
    with patch.object(Learner, "_cut", lambda self, *args: cut(self, *args)[1:]):
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
    from srft_ray.train.logprobs import PolicyModel

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
