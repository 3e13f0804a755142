"""Updates in flight: a response of several versions, from the engine's notes to what the learners check."""

import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from algorithms import Completion, Group
from srft_ray import make_config
from srft_ray.config.resolve import resolve
from srft_ray.observe import ledger, metrics
from srft_ray.rollout.generation import Generation
from srft_ray.rollout.loaded_version import EngineWeights, Held, LoadedVersion
from srft_ray.rollout.requests import Request
from srft_ray.sync.versions import PolicyWeights
from srft_ray.train.batching import collate
from srft_ray.train.provenance import Provenance
from tests.conftest import base_config
from tests.unit.test_config import message
from tests.unit.test_step_loop import DEADLINE_S

WEIGHTS = [
    EngineWeights(PolicyWeights(3, "three"), 0, (-1.0,)),
    EngineWeights(PolicyWeights(4, "four"), 1, (-2.0,)),
    EngineWeights(PolicyWeights(5, "five"), 2, (-3.0,)),
]
OFFERED = [weights.policy for weights in WEIGHTS]


def loading(in_flight_updates=True, timeout_s=DEADLINE_S):
    """An engine that holds version 3 and then loads 4 and 5."""
    coming = iter(WEIGHTS[1:])
    return LoadedVersion(WEIGHTS[0], lambda offered: next(coming), timeout_s, lambda: in_flight_updates)


def held(count=3):
    """A block during which these weights were held, one after the other."""
    found = Held(WEIGHTS[0], exact=False)
    found.weights = WEIGHTS[:count]
    return found


def rollout(loads, length=6, prefix=0):
    """One whose tokens were sampled after these loads."""
    request = Request(Group(5, 0, "", [1], ""), 0, 7, list(range(prefix)))
    ids = [10 + number for number in range(length)]
    made = request.completion(Generation(ids, [-1.0] * length, "", "stop"), "")
    held().sign(made, loads)
    return made


def group(*rollouts):
    made = Group(5, 9, "", [1], "", completions=list(rollouts), engine="abcd1234")
    held().prove(made)
    return made


def test_weights_are_loaded_while_a_block_is_in_flight():
    loaded = loading()
    with loaded.hold(3, OFFERED[0], 7) as first:
        with loaded.hold(4, OFFERED[1], 7) as second:
            assert loaded.in_flight == 2
        with loaded.hold(3, OFFERED[2], 7) as third:  # newer than it needs, and nothing is in the way
            pass
    assert [weights.policy.version for weights in first.weights] == [3, 4, 5]
    assert [weights.policy.version for weights in second.weights] == [4]
    assert [weights.policy.version for weights in third.weights] == [5]


def test_without_updates_in_flight_they_are_not():
    loaded = loading(in_flight_updates=False, timeout_s=0.05)
    with loaded.hold(3, OFFERED[0], 7) as first:
        with pytest.raises(TimeoutError), loaded.hold(4, OFFERED[1], 7):
            pass
        with loaded.hold(3, OFFERED[1], 7):
            pass
    assert first.weights == WEIGHTS[:1]


def test_a_load_waits_for_evaluations_and_for_nothing_else():
    loaded = loading()
    evaluation = loaded.hold(3, OFFERED[0], 7, exact=True)
    training = loaded.hold(3, OFFERED[0], 7)
    training.__enter__()
    evaluated = evaluation.__enter__()
    entered = threading.Event()

    def enter():
        with loaded.hold(4, OFFERED[1], 7):
            entered.set()

    block = threading.Thread(target=enter)
    block.start()
    assert not entered.wait(0.1) and evaluated.weights == WEIGHTS[:1]
    evaluation.__exit__(None, None, None)
    assert entered.wait(DEADLINE_S)
    block.join(DEADLINE_S)
    training.__exit__(None, None, None)


def test_a_block_knows_of_a_load_that_one_of_its_sequences_saw():
    """The sequence ends while the load that sampled its last tokens is still under way."""
    proceed = threading.Event()
    begun = threading.Event()

    def load(offered):
        begun.set()
        assert proceed.wait(DEADLINE_S)
        return WEIGHTS[1]

    loaded = LoadedVersion(WEIGHTS[0], load, DEADLINE_S, lambda: True)
    first = loaded.hold(3, OFFERED[0], 7)
    found = first.__enter__()
    other = loaded.hold(4, OFFERED[1], 7)
    threads = [
        threading.Thread(target=target, args=args)
        for target, args in ((other.__enter__, ()), (first.__exit__, (None, None, None)))
    ]
    threads[0].start()
    assert begun.wait(DEADLINE_S)
    threads[1].start()
    proceed.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert found.weights == WEIGHTS[:2]


@pytest.mark.parametrize(
    ("loads", "prefix", "version", "spans"),
    [
        ([(0, 0)], 0, 3, []),
        ([(2, 0)], 2, 5, []),
        ([(0, 0), (2, 4)], 0, 3, [(3, 0), (5, 4)]),
        ([(0, 0), (1, 1), (2, 4)], 2, 3, [(3, 0), (4, 3), (5, 6)]),
        ((), 0, 3, []),
    ],
)
def test_a_rollout_names_the_versions_that_sampled_it(loads, prefix, version, spans):
    found = rollout(loads, prefix=prefix)
    assert found.policy_version == version and list(found.spans) == spans
    ends = [first for _, first in spans[1:]] + [6 + prefix]
    starts = spans or [(version, 0)]
    assert found.parts == [(each, first, end) for (each, first), end in zip(starts, ends, strict=True)]


def test_two_loads_of_one_version_are_one_span():
    block = held()
    block.weights = [WEIGHTS[0], EngineWeights(OFFERED[0], 1)]
    made = rollout([(0, 0)])
    block.sign(made, [(0, 0), (1, 3)])
    assert (made.policy_version, made.spans) == (3, ())


def provenance(max_staleness):
    made = Provenance(max_staleness, 1e-3, torch.device("cpu"))
    made.fingerprints = {3: "three", 4: "four", 5: "five"}
    made.probes = {3: (-1.0,), 4: (-2.0,), 5: (-3.0,)}
    return made


def test_every_span_proves_its_version():
    mixed = rollout([(0, 0), (1, 2), (2, 4)])
    assert provenance(2).problem(5, group(mixed)) == ""
    assert "by policy version 3, but only versions 4 to 5" in provenance(1).problem(5, group(mixed))
    learners = provenance(2)
    learners.fingerprints[4] = "other"
    assert "fingerprint four as policy version 4" in learners.problem(5, group(mixed))
    assert learners.problem(5, group(rollout([(0, 0), (2, 4)]))) == ""
    learners = provenance(2)
    learners.probes[4] = (-2.5,)
    assert "differ from the learner's by 5.00e-01" in learners.problem(5, group(mixed))
    assert learners.probe_difference(group(mixed)) == 0.5
    learners.probes[4] = (float("nan"),)
    assert "nan" in learners.problem(5, group(mixed))


def test_other_weights_under_the_same_number_are_refused():
    block = held()
    block.weights = [WEIGHTS[0], EngineWeights(PolicyWeights(3, "before a restart"), 1)]
    made = Group(5, 9, "", [1], "", completions=[rollout([(0, 0)])])
    block.prove(made)
    assert "fingerprint three and before a restart" in provenance(2).problem(5, made)


def test_parity_is_of_the_tokens_of_the_present_version():
    mixed, old, replay = rollout([(0, 0), (2, 4)]), rollout([(0, 0)]), rollout([(2, 0)])
    replay.origin = "replay"
    prefixed = rollout([(2, 0)], length=4, prefix=2)
    demonstration = Completion(4, "demo", "", [1, 2, 3], policy_version=5)
    sequences = [(group(), each) for each in (mixed, old, replay, prefixed, demonstration)]
    fresh_BT = collate(sequences, 5).fresh_BT.numpy()
    expected = np.zeros((5, 6), dtype=bool)
    expected[0, 4:] = True
    expected[3, 2:] = True
    assert (fresh_BT == expected).all()


def test_the_ledger_has_the_spans(tmp_path):
    (tmp_path / "groups").mkdir()
    ledger.write(tmp_path, 5, 0, [group(rollout([(0, 0), (2, 4)]), rollout([(1, 0)]))])
    rows = pq.read_table(tmp_path / "groups/step-000005-0000.parquet").to_pylist()
    assert [row["policy_version"] for row in rows] == [3, 4]
    assert [row["spans"] for row in rows] == [
        [{"version": 3, "first": 0}, {"version": 5, "first": 4}],
        None,
    ]


def test_staleness_counts_the_oldest_span():
    sums = metrics._rollout_sums([rollout([(0, 0), (2, 4)]), rollout([(2, 0)])], 5)
    assert sums["staleness"] == 2 and sums["mixed"] == 1


@pytest.mark.parametrize(
    ("rollouts", "algorithm", "said"),
    [
        ({}, {"name": "grpo"}, r"max_staleness=0"),
        ({"max_staleness": 1}, {"name": "srft"}, r"srft does not correct"),
        ({"max_staleness": 1}, {"name": "dapo"}, r"dapo does not correct"),
        ({"max_staleness": 1}, {"name": "rloo", "old": "behavior"}, r"rloo does not correct"),
        (
            {"max_staleness": 1},
            {"name": "two_stage", "first": {"name": "dapo"}, "second": {"name": "grpo"}},
            r"dapo does not correct",
        ),
    ],
)
def test_what_cannot_hold_is_refused(tmp_path, tiny_model, rollouts, algorithm, said):
    def made():
        values = base_config(tmp_path, tiny_model, rollout={"in_flight": True, **rollouts})
        return resolve(make_config(values | {"algorithm": algorithm}))

    assert said in message(made)


@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "grpo"},
        {"name": "dapo", "correction": "token_tis"},
        {"name": "two_stage", "first": {"name": "sft"}, "second": {"name": "grpo"}},
    ],
)
def test_what_corrects_may_run(tmp_path, tiny_model, algorithm):
    values = base_config(tmp_path, tiny_model, rollout={"in_flight": True, "max_staleness": 1})
    assert resolve(make_config(values | {"algorithm": algorithm})).config.rollout.in_flight
