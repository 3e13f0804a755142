"""Which weights an engine may sample by, and when it loads others."""

import threading

import pytest

from srft_ray.rollout.loaded_version import EngineWeights, LoadedVersion
from srft_ray.sync.versions import PolicyWeights

MODEL = PolicyWeights(0, "model")


def loaded_version(*brought, timeout_s=5.0):
    """One whose engine starts from the model and then loads what is `brought`, one after the other."""
    coming = (EngineWeights(weights) for weights in brought)
    return LoadedVersion(EngineWeights(MODEL), lambda offered: next(coming), timeout_s)


def policy(held):
    """The one that a block is sampled by."""
    [weights] = held.weights
    return weights.policy


def test_the_model_itself_is_not_loaded_again():
    loaded = loaded_version()
    with loaded.hold(0, PolicyWeights(0), generation=7) as held:
        assert policy(held) == MODEL


def test_an_idle_engine_loads_what_is_newer():
    loaded = loaded_version(PolicyWeights(1, "a"))
    for _ in range(2):
        with loaded.hold(0, PolicyWeights(1, "a"), generation=7) as held:
            assert policy(held) == PolicyWeights(1, "a")


def test_a_busy_engine_goes_on_with_what_is_new_enough():
    loaded = loaded_version()
    with loaded.hold(0, PolicyWeights(0), 7), loaded.hold(0, PolicyWeights(1, "a"), 7) as held:
        assert policy(held) == MODEL


def test_a_block_that_needs_more_waits_for_the_others():
    loaded = loaded_version(PolicyWeights(1, "a"), timeout_s=0.05)
    with (
        loaded.hold(0, PolicyWeights(0), 7),
        pytest.raises(TimeoutError, match=r"1 blocks of rollouts did not finish .* policy version 1"),
        loaded.hold(1, PolicyWeights(1, "a"), 7),
    ):
        pass
    loaded = loaded_version(PolicyWeights(1, "a"))
    first = loaded.hold(0, PolicyWeights(0), 7)
    first.__enter__()
    threading.Timer(0.05, lambda: first.__exit__(None, None, None)).start()
    with loaded.hold(1, PolicyWeights(1, "a"), 7) as held:
        assert policy(held) == PolicyWeights(1, "a")


def test_an_engine_goes_back_with_the_learners():
    loaded = loaded_version(PolicyWeights(5, "five"), PolicyWeights(3, "three"))
    with loaded.hold(5, PolicyWeights(5, "five"), 7):
        pass
    with loaded.hold(3, PolicyWeights(3, "three"), 8) as held:
        assert policy(held) == PolicyWeights(3, "three")


def test_an_engine_does_not_go_back_for_an_older_answer():
    """A block was admitted with version 1; another one loaded version 2 meanwhile."""
    loaded = loaded_version(PolicyWeights(2, "two"))
    with loaded.hold(1, PolicyWeights(2, "two"), 7), loaded.hold(1, PolicyWeights(1, "one"), 7) as held:
        assert policy(held) == PolicyWeights(2, "two")


def test_other_weights_of_the_same_version_are_loaded():
    loaded = loaded_version(PolicyWeights(5, "before"), PolicyWeights(5, "after"))
    with loaded.hold(5, PolicyWeights(5, "before"), 7):
        pass
    with loaded.hold(5, PolicyWeights(5, "after"), 7) as held:
        assert policy(held) == PolicyWeights(5, "after")


def test_the_same_weights_of_an_earlier_start_are_kept():
    loaded = loaded_version(PolicyWeights(5, "same"))
    with loaded.hold(5, PolicyWeights(5, "same"), 7):
        pass
    with loaded.hold(5, PolicyWeights(5, "same"), 8) as held:
        assert policy(held) == PolicyWeights(5, "same")


def test_an_earlier_start_is_not_sampled_by_although_it_is_young_enough():
    loaded = loaded_version(PolicyWeights(6, "six"))
    with loaded.hold(0, PolicyWeights(6, "six"), 8) as held:
        assert policy(held) == PolicyWeights(6, "six")


def test_a_transport_that_brings_something_else_is_asked_once():
    """The learners refuse such rollouts; an engine that asks for ever would only hide the cause."""
    loaded = loaded_version(PolicyWeights(1, "wrong"), PolicyWeights(1, "wrong"))
    with loaded.hold(1, PolicyWeights(1, "right"), 7) as held:
        assert policy(held) == PolicyWeights(1, "wrong")
