"""Runs of a series with the same model and seed evaluate the model that they begin with once."""

from dataclasses import replace

import pytest

from algorithms import Group
from srft_ray.rollout.base_evaluation import Origin, base_evaluations
from srft_ray.rollout.loaded_version import EngineWeights
from srft_ray.sync.versions import PolicyWeights
from tests.unit.test_early_judging import Pool, Worker, recorded
from tests.unit.test_step_loop import FakeEngine

ORIGIN = Origin("model", 4)


class EvaluationWorker(Worker):
    """Of one run, whose sets are sampled like its training groups."""

    def __init__(self, base, pool=None):
        super().__init__(FakeEngine(), pool or Pool())
        self.settings.max_staleness = 0
        self.base = base
        self.sampled = 0

    def _sampling(self, group):
        return None

    def _generations(self, group, requests):
        self.sampled += len(requests)
        return super()._generations(group, requests)

    def evaluate(self, step=0, dataset="held"):
        groups = [
            Group(step, n, "", [n, 1], "", num_rollouts=2, max_new_tokens=8, dataset=dataset)
            for n in range(3)
        ]
        self._roll_out(groups)
        return groups


def test_the_second_run_has_what_the_first_sampled():
    others = [Origin("model", 5), Origin("other", 4)]
    one, *more, two = (EvaluationWorker(base) for base in base_evaluations([ORIGIN, *others, ORIGIN]))
    expected = recorded(one.evaluate())
    for other in more:  # another seed, and another model
        assert recorded(other.evaluate()) and other.sampled == 6
    found = two.evaluate()
    assert recorded(found) == expected and two.sampled == 0
    assert all(group.fingerprints == {0: "model"} and group.finished_at for group in found)
    assert len(two.evaluate()) == 3 and two.sampled == 6  # nobody else needs it: it was not kept any longer


@pytest.mark.parametrize(("step", "dataset"), [(2, "held"), (0, "train")])
def test_nothing_else_is_kept(step, dataset):
    one, two = (EvaluationWorker(base) for base in base_evaluations([ORIGIN, ORIGIN]))
    one.evaluate(step, dataset)
    two.evaluate(step, dataset)
    assert two.sampled == 6


def test_groups_prove_what_the_engine_holds_now():
    """The learners published the model under another fingerprint than its files have."""
    one, two = (EvaluationWorker(base) for base in base_evaluations([ORIGIN, ORIGIN]))
    one.evaluate()
    two.loaded.weights = EngineWeights(PolicyWeights(0, "published"), 1, (-1.0,))
    assert [(group.fingerprints, group.probes) for group in two.evaluate()] == [
        ({0: "published"}, {0: (-1.0,)})
    ] * 3


def test_a_block_that_could_not_be_judged_is_sampled_again():
    class Slow(Pool):
        def verify(self, items):
            return [replace(verdict, verdict="timeout") for verdict in super().verify(items)]

    first, second = base_evaluations([ORIGIN, ORIGIN])
    EvaluationWorker(first, Slow()).evaluate()
    two = EvaluationWorker(second)
    two.evaluate()
    assert two.sampled == 6
