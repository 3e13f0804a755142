"""The actor of the pool with updates in flight, without Ray and vLLM."""

from types import SimpleNamespace

from algorithms import Group
from srft_ray.config.rollout import RolloutSection
from srft_ray.rollout import worker as module
from srft_ray.rollout.generation import Generation
from srft_ray.rollout.loaded_version import EngineWeights, LoadedVersion
from srft_ray.sync.admission import Admission
from srft_ray.sync.versions import PolicyWeights
from tests.unit.test_early_judging import Pool, Worker
from tests.unit.test_step_loop import DEADLINE_S, FakeEngine

PUBLISHED = PolicyWeights(1, "one")


class Engine:
    """Samples responses of three tokens, each after as many loads as `loads` says meanwhile."""

    def __init__(self):
        self.loads = 0
        self.meanwhile = None  # is called once, after the first token of a block

    def stream(self, prompts, seeds, sampling, used):
        first = self.loads
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile()
        loads = ((first, 0),) if self.loads == first else ((first, 0), (self.loads, 1))
        for number in range(len(prompts)):
            yield number, Generation([5, 6, 7], [-1.0] * 3, "text", "stop", loads=loads)

    def load(self, folder):
        self.loads += 1

    def score_probe(self):
        return (-1.0 - self.loads,)


class InFlightWorker(Worker):
    """It starts with version 0, and version 1 is published."""

    def __init__(self):
        super().__init__(FakeEngine(), Pool())
        self.settings = SimpleNamespace(
            seed=0,
            rollout=RolloutSection(),
            max_staleness=1,
            evaluation={"held": SimpleNamespace(temperature=0.0, top_p=1.0, max_new_tokens=8)},
        )
        self.engine = Engine()
        self.transport = SimpleNamespace(fetch=self._fetch)
        weights = EngineWeights(PolicyWeights(0, "model"), 0, (-1.0,))
        self.loaded = LoadedVersion(weights, self._load, DEADLINE_S, lambda: True)
        self.offered = PolicyWeights(0)

    def _fetch(self, reload, offered):
        assert offered == PUBLISHED
        reload("folder")
        return PUBLISHED.version

    def _wait_for_admission(self, group):
        return Admission(True, self.offered, 1, 0)


def group(number, dataset="train"):
    return Group(1, number, "", [number], "", num_rollouts=2, max_new_tokens=8, dataset=dataset)


def test_a_block_names_what_was_loaded_for_another_one(monkeypatch):
    monkeypatch.setattr(module, "folder_fingerprint", lambda folder: PUBLISHED.fingerprint)
    worker = InFlightWorker()
    early, late = group(0), group(1)

    def meanwhile():
        worker.offered = PUBLISHED
        worker._roll_out([late])

    worker.engine.meanwhile = meanwhile
    worker._roll_out([early])
    assert [(one.policy_version, list(one.spans)) for one in early.rollouts] == [(0, [(0, 0), (1, 1)])] * 2
    assert early.fingerprints == {0: "model", 1: "one"} and early.probes == {0: (-1.0,), 1: (-2.0,)}
    assert [(one.policy_version, list(one.spans)) for one in late.rollouts] == [(1, [])] * 2
    assert late.fingerprints == {1: "one"} and late.probes == {1: (-2.0,)}


def test_an_evaluation_keeps_its_weights():
    worker = InFlightWorker()
    evaluation = group(0, dataset="held")
    held = []

    def meanwhile():
        worker.offered = PUBLISHED
        with worker.loaded.hold(0, PUBLISHED, 1) as other:  # a version older than the published one is enough
            held.append(other.weights[0].policy.version)

    worker.engine.meanwhile = meanwhile
    worker._roll_out([evaluation])
    assert held == [0] and worker.engine.loads == 0
    assert evaluation.fingerprints == {0: "model"}
    assert {(one.policy_version, one.spans) for one in evaluation.rollouts} == {(0, ())}
