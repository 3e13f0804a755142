"""The plan of the stream: which groups each step holds, and blocks that no two steps or learners share."""

import math
import pickle
from typing import Any

import pytest

from algorithms import DAPO, SFT, SRFT, Algorithm, Schedule, TwoStage
from srft_ray.config.load import make_config
from srft_ray.config.resolve import resolve
from srft_ray.config.settings import Bounds
from srft_ray.config.training import TrainerSection
from srft_ray.data.plan import Segment, StepSize, StreamPlan, make_plan
from srft_ray.errors import UserError
from srft_ray.run.preflight import plan_stream
from srft_ray.sync.versions import PublishedVersions, WeightShare
from tests.conftest import base_config


def plan(
    evaluation: dict[str, int] | None = None,
    engines: Any = 1,
    learners: Any = 1,
    per_task: int | None = None,
    beside: bool = False,
    **trainer: int,
) -> StreamPlan:
    return make_plan(
        TrainerSection(**trainer),
        SRFT(),
        Bounds.parse(learners, "learner.num_workers"),
        Bounds.parse(engines, "rollout.num_engines"),
        per_task,
        evaluation or {},
        beside,
    )


def outline(stream: StreamPlan, start: int = 0) -> list[str]:
    return [f"{segment.dataset}{segment.step}" for segment in stream.segments(start)]


def test_training_alone():
    stream = plan(steps=3, groups_per_step=4)
    assert list(stream.segments(0)) == [Segment("train", step, 4, 4) for step in range(3)]


@pytest.mark.parametrize(
    ("steps", "every", "wanted"),
    [
        (4, 2, "a0 train0 train1 a2 train2 train3 a4"),
        (5, 2, "a0 train0 train1 a2 train2 train3 a4 train4 a5"),
        (2, 1, "a0 train0 a1 train1 a2"),
        (2, 9, "a0 train0 train1 a2"),
        (2, 0, "train0 train1"),
    ],
)
def test_evaluations_come_before_the_first_every_n_and_after_the_last_step(
    steps: int, every: int, wanted: str
):
    stream = plan({"a": 3}, steps=steps, groups_per_step=4, evaluate_every=every)
    assert " ".join(outline(stream)) == wanted
    assert [step for step in range(steps + 1) if stream.evaluates(step)] == [
        int(name[1:]) for name in wanted.split() if name[0] == "a"
    ]


@pytest.mark.parametrize(
    ("steps", "every", "wanted"),
    [
        (4, 2, "train0 a0 train1 train2 a2 train3 a4"),
        (5, 2, "train0 a0 train1 train2 a2 train3 train4 a4 a5"),
        (2, 1, "train0 a0 train1 a1 a2"),
        (2, 9, "train0 a0 train1 a2"),
        (2, 0, "train0 train1"),
    ],
)
def test_beside_updates_evaluations_stand_behind_the_groups_of_their_step(
    steps: int, every: int, wanted: str
):
    stream = plan({"a": 3}, beside=True, steps=steps, groups_per_step=4, evaluate_every=every)
    assert " ".join(outline(stream)) == wanted


@pytest.mark.parametrize("max_staleness", [1, 2, 5])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_what_learners_wait_for_may_start_and_evaluations_have_one_version(every: int, max_staleness: int):
    """Learners publish version s when they have taken everything of the steps before s."""
    stream = plan({"a": 3}, beside=True, steps=7, groups_per_step=4, evaluate_every=every)
    versions = PublishedVersions(max_staleness)
    versions.restart(0, now=0.1)
    for segment in stream.segments(0):
        if segment.step > versions.offered.version:
            versions.publish(100, WeightShare(segment.step, ranks=1))
        is_evaluation = segment.dataset != "train"
        assert versions.admits(versions.generation, segment.step, exact=is_evaluation)
        assert not is_evaluation or versions.offered.version == segment.step


@pytest.mark.parametrize(
    ("max_staleness", "patience", "beside"),
    [(0, None, False), (1, None, True), (2, None, True), (1, 3, False)],
)
def test_engines_evaluate_beside_updates_with_staleness_unless_training_may_stop_early(
    tmp_path, max_staleness: int, patience: int | None, beside: bool
):
    best = {"keep_best": "held", "checkpoint_every": 1} if patience else {}
    values = base_config(
        tmp_path,
        tmp_path / "model",
        rollout={"max_staleness": max_staleness},
        trainer={"evaluate_every": 1, "patience": patience, **best},
        evaluation={"data": {"held": {}}},
    )
    assert plan_stream(resolve(make_config(values)), {"held": 8}).evaluates_beside == beside


@pytest.mark.parametrize("beside", [False, True])
def test_every_set_is_evaluated_in_turn(beside: bool):
    stream = plan({"a": 3, "b": 1}, beside=beside, steps=1, groups_per_step=2, evaluate_every=1)
    first = ["train0", "a0", "b0"] if beside else ["a0", "b0", "train0"]
    assert outline(stream) == [*first, "a1", "b1"]


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("start", range(6))
def test_a_stream_from_a_later_step_is_the_rest_of_the_whole(start: int, beside: bool):
    stream = plan({"a": 3}, beside=beside, steps=5, groups_per_step=4, evaluate_every=2)
    whole = list(stream.segments(0))
    assert list(stream.segments(start)) == [segment for segment in whole if segment.step >= start]


@pytest.mark.parametrize(
    ("size", "learners", "per_task", "padded"),
    [
        (3, 1, 1, 3),
        (3, 2, 1, 4),
        (4, 2, 2, 4),
        (5, 2, 2, 8),
        (5, [2, 3], 2, 12),
        (12, [2, 3], 2, 12),
        (13, [1, 3], 1, 18),
        (1, [1, 4], 1, 12),
    ],
)
def test_evaluation_sets_are_padded_to_what_all_learners_take(
    size: int, learners: Any, per_task: int, padded: int
):
    stream = plan(
        {"a": size}, learners=learners, per_task=per_task, steps=1, groups_per_step=12, evaluate_every=1
    )
    assert next(stream.segments(0)) == Segment("a", 0, size, padded)


@pytest.mark.parametrize("engines", [1, 2, [1, 3], 50])
@pytest.mark.parametrize(
    ("groups", "learners"),
    [(1, 1), (4, 2), (12, [2, 4]), (12, [1, 4]), (16, [1, 2]), (16, 4), (60, [1, 6]), (60, 3)],
)
def test_blocks_divide_every_learners_share(groups: int, learners: Any, engines: Any):
    low, high = learners if isinstance(learners, list) else (learners, learners)
    stream = plan({"a": 7}, engines, learners, steps=2, groups_per_step=groups, evaluate_every=1)
    most_engines = engines[1] if isinstance(engines, list) else engines
    assert stream.block == 1 or stream.block * most_engines <= groups  # a task a step for every engine
    for segment in stream.segments(0):
        assert segment.padded >= segment.groups
        for workers in range(low, high + 1):
            assert segment.padded % workers == 0 and segment.padded // workers % stream.block == 0


@pytest.mark.parametrize(
    ("groups", "learners", "engines", "block"),
    [
        (16, 1, 1, 16),
        (16, 2, 2, 8),
        (16, 4, 1, 4),
        (16, 1, 3, 2),
        (12, [2, 3], 1, 2),
        (4, 1, 9, 1),
        (1023, 1, 2, 93),
    ],
)
def test_the_largest_block_that_the_engines_share_evenly(
    groups: int, learners: Any, engines: int, block: int
):
    assert plan(None, engines, learners, steps=1, groups_per_step=groups).block == block


@pytest.mark.parametrize("engines", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("groups", [8, 16, 24, 64, 96, 1000])
def test_no_engine_has_much_more_than_the_others(groups: int, engines: int):
    stream = plan(None, engines, 2, steps=1, groups_per_step=groups)
    most = math.ceil(groups // stream.block / engines) * stream.block
    assert most <= 1.1 * math.ceil(groups / engines)


@pytest.mark.parametrize(("algorithm", "block"), [(DAPO(), 2), (DAPO(max_refills=0), 8), (SFT(), 8)])
def test_an_engine_has_several_blocks_if_groups_are_refilled(algorithm: Algorithm, block: int):
    one = Bounds(1, 1)
    stream = make_plan(TrainerSection(steps=1, groups_per_step=8), algorithm, one, one, None, {})
    assert stream.block == block


def test_groups_per_task_is_taken_as_given():
    assert plan(per_task=8, learners=2, steps=1, groups_per_step=16).block == 8


@pytest.mark.parametrize(
    ("per_task", "learners", "share"), [(3, 1, 16), (16, 2, 8), (16, [1, 2], 8), (32, 1, 16)]
)
def test_groups_per_task_must_divide_a_learners_share(per_task: int, learners: Any, share: int):
    with pytest.raises(UserError, match=f"rollout.groups_per_task={per_task} must divide the {share} groups"):
        plan(per_task=per_task, learners=learners, steps=1, groups_per_step=16)


def unequal(
    every: int = 3,
    sets: dict[str, int] | None = None,
    beside: bool = False,
    samples: dict[str, int] | None = None,
) -> StreamPlan:
    """Two stages of different sizes, the second from step 4 on, with evaluations of two sets."""
    trainer = TrainerSection(steps=11, groups_per_step=4, evaluate_every=every, first_group=100)
    stages = TwoStage(
        first_steps=4, first_schedule=Schedule(groups_per_step=8), second_schedule=Schedule(groups_per_step=4)
    )
    sets = {"a": 3, "b": 5} if sets is None else sets
    return make_plan(trainer, stages, Bounds(1, 2), Bounds(1, 1), 2, sets, beside, samples)


@pytest.mark.parametrize("bundled", [False, True])
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("every", [0, 1, 3, 4, 11, 50])
@pytest.mark.parametrize("start", [0, 1, 4, 10, 11])
def test_positions_by_formula_are_those_of_the_list(every: int, start: int, beside: bool, bundled: bool):
    stream = unequal(every, {"a": 3, "b": 21}, beside, {"a": 4, "b": 4} if bundled else None)
    assert (stream.bundle("b") > stream.bundle("a")) == bundled
    sizes = [8] * 4 + [4] * 7
    assert [stream.size(step) for step in range(11)] == sizes
    assert [stream.position(step) for step in range(12)] == [100 + sum(sizes[:step]) for step in range(12)]
    listed = [
        (segment, offset)
        for segment in stream.segments(start)
        for offset in range(0, segment.padded, stream.bundle(segment.dataset))
    ]
    assert stream.length(start, stream.steps) == len(listed)
    assert [stream.locate(start, place) for place in range(len(listed))] == listed
    with pytest.raises(IndexError):
        stream.locate(start, len(listed))


@pytest.mark.parametrize(
    ("prompts", "samples", "engines", "learners", "largest", "blocks"),
    [
        (200, 8, 1, 1, 112, 2),  # 1,024 sequences and a block of training's more
        (200, 8, 1, 2, 104, 2),
        (30, 32, 1, 1, 32, 1),
        (30, 32, 4, 1, 8, 4),  # each of four engines has a block
        (5_000, 1, 2, 1, 1_000, 5),
        (3, 4_096, 1, 1, 16, 1),  # never smaller than a block of training
    ],
)
def test_blocks_of_an_evaluation_are_large(
    prompts: int, samples: int, engines: int, learners: int, largest: int, blocks: int
) -> None:
    stream = make_plan(
        TrainerSection(steps=2, groups_per_step=16, evaluate_every=2),
        SRFT(),
        Bounds(learners, learners),
        Bounds(engines, engines),
        None,
        {"a": prompts},
        samples={"a": samples},
    )
    assert stream.block * stream.bundle("a") == largest
    [segment] = stream.evaluations(0)
    assert segment.padded == largest * blocks >= prompts
    assert stream.length(0, 2) == 32 + 2 * blocks * stream.block


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("most", [1, 3, 7, 10, 1000])
def test_streams_follow_each_other_without_a_gap(most: int, beside: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("srft_ray.data.block_size.STREAM_BLOCKS", (most, most))
    stream = unequal(beside=beside)
    found, start, stops = [], 0, []
    while not stops or stops[-1] < stream.steps:
        stops.append(stream.stream_stop(start))
        part = list(stream.segments(start, stops[-1]))
        length = sum(segment.padded for segment in part)
        assert stream.length(start, stops[-1]) == length
        assert length <= most * stream.block or stops[-1] in (start + 1, stream.steps)
        found += part
        start = stops[-1]
    assert found == list(stream.segments(0))
    assert (len(stops) > 1) == (most < 1000)


def test_a_plan_of_a_million_steps_costs_what_a_small_one_costs():
    stream = plan({"a": 3}, learners=2, steps=10**6, groups_per_step=8, evaluate_every=10)
    assert len(stream.sizes) == 1 and len(pickle.dumps(stream)) < 2000
    assert stream.position(10**6) == 8 * 10**6
    segment, offset = stream.locate(0, stream.length(0, 10**6) - stream.length(10**6, 10**6) - 1)
    assert (segment.step, offset) == (10**6 - 1, 7)
    assert stream.length(0, stream.stream_stop(0)) <= 1_000 * stream.block


@pytest.mark.parametrize(("groups", "blocks"), [(8, 1_000), (64, 6_400), (2_000, 20_000)])
def test_a_stream_has_the_blocks_of_a_hundred_steps_within_bounds(groups, blocks):
    stream = plan(per_task=1, steps=10**6, groups_per_step=groups)
    assert stream.length(0, stream.stream_stop(0)) == blocks


def test_an_evaluation_is_one_stream_whatever_its_length():
    stream = StreamPlan(0, (StepSize(0, 1),), 1, 1, {"a": 5_000}, 1)  # as `srft-ray evaluate` has it
    assert stream.stream_stop(0) == 0 and stream.length(0, 0) == 5_000
