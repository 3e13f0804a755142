"""What methods draw differs between runs of two seeds, and depends on nothing but seed and sequence."""

import random
from dataclasses import replace

import pytest

from algorithms import C3PO, R3, UFT, AdaBack, ClipCov, Completion, Group, PrefixRFT, SequenceRecord, Stage
from srft_ray.rollout.requests import requests_of, sequence_seed


def group(number, step=0):
    demonstration = Completion(4, "demo", "", list(range(102)))
    return Group(step, number, "p", [1], "1", completions=[demonstration], num_rollouts=4, max_new_tokens=200)


def lengths(algorithm, seed, numbers):
    """Of the prefixes of each group, by its number."""
    stage = Stage(algorithm, 0, 300)
    requests = {number: requests_of(group(number), seed, stage) for number in numbers}
    return {number: [len(request.prefix) for request in found] for number, found in requests.items()}


@pytest.mark.parametrize("algorithm", [UFT(start=0.5), R3(), AdaBack()], ids=lambda algorithm: algorithm.name)
def test_rollouts_of_a_group_share_a_hint_that_the_seed_of_the_run_draws(algorithm):
    drawn = lengths(algorithm, 0, range(40))
    assert all(len(set(found)) == 1 for found in drawn.values())
    assert drawn == lengths(algorithm, 0, reversed(range(40)))
    other = lengths(algorithm, 1, range(40))
    assert sum(drawn[number] != other[number] for number in range(40)) > 20
    assert len({found[0] for found in drawn.values()}) >= 4


def test_without_a_shared_prefix_each_rollout_draws_for_itself():
    assert not PrefixRFT.shares_prefix
    found = lengths(PrefixRFT(low_start=0.0), 0, range(8))
    assert len({first for first, *_ in found.values()}) > 4 and all(
        not any(rest) for _, *rest in found.values()
    )


def records(seed):
    """Of 16 groups of four rollouts with ten tokens in two updates, ordered by group and sample."""
    return [
        SequenceRecord(
            number,
            sample,
            "rollout",
            number % 2,
            10,
            0,
            1.0,
            1.0,
            True,
            seed=sequence_seed(seed, group(number), sample),
        )
        for number in range(16)
        for sample in range(4)
    ]


@pytest.mark.parametrize(("algorithm", "name"), [(C3PO(token_budget=155), "kept"), (ClipCov(), "draw")])
def test_the_seed_of_the_run_draws_what_has_a_gradient(algorithm, name):
    drawn = algorithm.sequence_values(records(0))[name]
    assert drawn == algorithm.sequence_values(records(0))[name]
    other = algorithm.sequence_values(records(1))[name]
    assert sum(a != b for a, b in zip(drawn, other, strict=True)) > 20


def test_a_draw_of_clip_cov_is_that_of_its_sequence_alone():
    mixed = records(0)
    random.Random(0).shuffle(mixed)
    draws = ClipCov().sequence_values(mixed)["draw"]
    found = {(r.group_id, r.sample): draw for r, draw in zip(mixed, draws, strict=True)}
    ordered = [replace(record, update=0) for record in records(0)[::3]]
    assert ClipCov().sequence_values(ordered)["draw"] == [found[r.group_id, r.sample] for r in ordered]
