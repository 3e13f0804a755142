"""AdaBack: the bisection of the length of a prefix, by hand; its visits, from rollouts to the next group."""

import random

import numpy as np
import pytest

from algorithms import Completion, Group, Visit
from algorithms.adaback import AdaBack
from srft_ray.config.load import make_config
from srft_ray.config.resolve import resolve
from srft_ray.data.history import VISIT, PromptHistory
from srft_ray.errors import UserError
from srft_ray.train.history import visits_of
from tests.conftest import base_config

LONGEST = 100  # tokens that may be given, of a demonstration of 102


def outcome(step, length, correct, of=4):
    """A visit whose rollouts all continue so many tokens."""
    return Visit(step, 0, 0, of, correct, length) if length else Visit(step, of, correct)


@pytest.mark.parametrize(
    "lengths_and_correct, interval",
    [
        ([], (0, 100)),
        ([(40, 4)], (0, 40)),
        ([(40, 2)], (0, 40)),  # half of the rollouts is enough
        ([(40, 1)], (40, 100)),
        ([(40, 0), (70, 4)], (40, 70)),
        ([(40, 0), (70, 3), (50, 1)], (50, 70)),
        ([(40, 0), (70, 3), (50, 1), (60, 2)], (50, 60)),
        ([(60, 4), (20, 0), (20, 4)], (0, 20)),  # 20 was too short, and no longer is
        ([(60, 4), (60, 0)], (60, 100)),  # 60 was enough, and no longer is
        ([(60, 4), (0, 4)], (0, 0)),
        ([(0, 4), (0, 1)], (0, 100)),
        ([(100, 0)], (100, 100)),
        ([(100, 0), (100, 4)], (0, 100)),
        ([(150, 4)], (0, 100)),  # another demonstration was longer
    ],
)
def test_the_interval_of_a_prompt(lengths_and_correct, interval):
    visits = [outcome(step, *item) for step, item in enumerate(lengths_and_correct)]
    assert AdaBack().interval(visits, LONGEST) == interval


def test_the_threshold_decides_what_is_a_success():
    visit = [outcome(0, 40, 3)]
    assert AdaBack(threshold=0.75).interval(visit, LONGEST) == (0, 40)
    assert AdaBack(threshold=0.8).interval(visit, LONGEST) == (40, 100)


def group(step=0, group_id=0, visits=(), demonstration=102):
    completions = [Completion(4, "demo", "", list(range(demonstration)))] if demonstration else []
    return Group(
        step,
        group_id,
        "p",
        [1],
        "1",
        completions=completions,
        num_rollouts=4,
        max_new_tokens=200,
        row=0,
        visits=visits,
    )


def prefixes(given):
    """Of its rollouts, each with the random numbers that all of them share."""
    seed = given.group_id
    return [AdaBack().prefix(given, sample, given.step, random.Random(seed)) for sample in range(4)]


def test_all_rollouts_of_a_group_have_one_length_from_the_interval():
    visits = (outcome(0, 40, 0), outcome(1, 70, 4))
    drawn = [prefixes(group(2, number, visits)) for number in range(300)]
    assert all(len(set(lengths)) == 1 for lengths in drawn)
    assert {lengths[0] for lengths in drawn} == set(range(40, 71))
    assert prefixes(group(demonstration=0)) == [0] * 4


def trained(given, needed):
    """The group with rollouts that are correct if they continue at least `needed` tokens."""
    for sample, prefix in enumerate(prefixes(given)):
        reward = float(prefix >= needed)
        given.completions.append(Completion(sample, "rollout", "", [2], reward=reward, prefix=prefix))
        given.completions[0].trained = False
    return given


def test_what_a_visit_holds_at_most(tmp_path, tiny_model):
    most = (1, 2, 255, 255, 255, 255, 65_535)
    assert np.array([most], VISIT)[0].item() == most and VISIT.itemsize == 14
    rollouts = [Completion(n, "rollout", "", [2], prefix=70_000) for n in range(255)]
    given = Group(3, 0, "p", [1], "1", completions=rollouts, row=0)
    assert visits_of([given]) == [(0, (0, 3, 0, 0, 255, 255, 65_535))]
    config = make_config(base_config(tmp_path, tiny_model, rollout={"num_rollouts": 256}))
    with pytest.raises(UserError, match="counts at most 255 rollouts"):
        resolve(config, AdaBack())


def test_the_search_finds_the_shortest_prefix_that_helps_and_follows_the_policy():
    history = PromptHistory(1, lag=1)
    lengths = []
    for step in range(200):
        needed = 64 if step < 60 else 5
        given = trained(group(step, step, history.visits(0, step)), needed)
        lengths.append(given.rollouts[0].prefix)
        (_, entry), *_ = visits_of([given])
        history.extend(step + 1, np.array([entry], VISIT))
    assert np.mean(np.abs(np.array(lengths[10:60]) - 64)) < 12
    assert np.mean(np.abs(np.array(lengths[80:]) - 5)) < 12
