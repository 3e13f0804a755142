"""Which runs share engines and learners' processes, and that each group waits for its own run."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from srft_ray.config.load import make_config
from srft_ray.config.resolve import Resolved, resolve
from srft_ray.observe.journal import EVENTS, read_json_lines, record_checkpoint
from srft_ray.observe.series_events import SeriesEvents
from srft_ray.run.series import OF_A_RUN, series_of
from srft_ray.sync.coordinator import Coordinator
from srft_ray.sync.versions import UNKNOWN, OutdatedLearners, PolicyWeights, PublishedVersions
from tests.conftest import base_config
from tests.unit.test_versions import share, weights


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path):
    """Resolves the config of a run with other keys, which is evaluated."""

    def make(**sections: dict[str, Any]) -> Resolved:
        trainer = {"evaluate_every": 2} | sections.pop("trainer", {})
        evaluation = {"data": {"held": {}}} | sections.pop("evaluation", {})
        values = base_config(tmp_path, tiny_model, trainer=trainer, evaluation=evaluation, **sections)
        return resolve(make_config(values))

    return make


def test_methods_seeds_and_learning_rates_share(run):
    runs = [
        run(algorithm={"name": "grpo"}),
        run(algorithm={"name": "sft"}, run={"name": "other", "seed": 3}),
        run(learner={"lr": 1e-7, "mini_batches": 2}, trainer={"steps": 5, "evaluate_every": 5}),
    ]
    assert series_of(runs) == [[0, 1, 2]]


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"max_length": 120}},
        {"rollout": {"temperature": 0.5}},
        {"rollout": {"max_staleness": 1}},
        {"learner": {"zero_stage": 1}},
        {"learner": {"lora": {"rank": 8}}},
        {"learner": {"cpus_per_worker": 2.0}},
        {"cluster": {"placement": "colocated"}},
        {"verifier": {"timeout_s": 3.0}},
        {"evaluation": {"samples": 2}},
        {"trainer": {"max_failures": 5}},
    ],
)
def test_what_processes_were_made_from_is_not_shared(run, sections: dict[str, Any]):
    assert series_of([run(), run(**sections), run()]) == [[0, 2], [1]]


def test_blocks_of_another_size_are_in_another_stream(run):
    refilled = run(algorithm={"name": "dapo"}, trainer={"groups_per_step": 8})
    assert series_of([run(trainer={"groups_per_step": 8}), refilled]) == [[0], [1]]


def test_runs_without_engines_and_runs_that_may_end_early_are_alone(run):
    plain = {"evaluate_every": 0, "steps": 3}
    without = [run(algorithm={"name": "sft"}, trainer=plain, evaluation={"data": {}}) for _ in range(2)]
    early = [run(trainer={"patience": 2, "keep_best": "held", "checkpoint_every": 2}) for _ in range(2)]
    assert series_of([*without, *early]) == [[0], [1], [2], [3]]


def test_another_verifier_of_python_is_another_process(run):
    judges = [lambda response, reference: 1.0, lambda response, reference: 0.0]
    runs = [replace(run(), verifier=judge) for judge in (judges[0], judges[1], judges[0])]
    assert series_of(runs) == [[0, 2], [1]]


def test_what_a_run_has_of_its_own_are_keys_of_the_config(run):
    config = run().config
    for section, keys in OF_A_RUN.items():
        assert all(hasattr(getattr(config, section), key) for key in keys or ())


def test_every_run_of_a_series_has_a_generation_of_its_own():
    versions = PublishedVersions(0)
    first = versions.restart(0, now=0.1, run=2, later=[(3, 0), (5, 4)])
    assert versions.starts[0] == first
    assert [(one.run, one.step, one.generation) for one in versions.starts] == [
        (2, 0, 100),
        (3, 0, 101),
        (5, 4, 102),
    ]
    assert [one.from_model for one in versions.starts] == [True, False, False], "engines have other weights"
    versions.publish(100, share(1, "weights"))
    versions.publish(100, share(2, "weights"))
    assert versions.unread == 1
    versions.enter(101)
    assert versions.unread == 0 and versions.offered.version == UNKNOWN
    # Learners of this start may be at any of these runs when others take their place.
    assert versions.restart(0, now=0.1).generation == 103


def test_a_group_of_the_next_run_waits_until_its_learners_publish():
    async def story():
        coordinator = Coordinator(max_staleness=0)
        first = await coordinator.restart(0, 0, [(1, 0)])
        later = (await coordinator.learner_starts())[1].generation
        assert (await coordinator.admit(first.generation, 0)).offered == PolicyWeights(0)
        waiting = asyncio.create_task(coordinator.admit(later, 0))
        await asyncio.sleep(0)
        await coordinator.publish(first.generation, share(1))
        refused = await coordinator.admit(later, 1, wait_s=0.01)
        assert not refused.admitted and refused.progress[1] == 1, "what the run before does is progress"
        await coordinator.add_history(first.generation, 0, 1, "of the run before")
        # The first call of a rank of the learners ends the run before.
        assert await coordinator.history_until(later) == 0
        assert not (await coordinator.admit(first.generation, 1, wait_s=0.01)).admitted
        assert not waiting.done()
        with pytest.raises(OutdatedLearners):
            await coordinator.publish(first.generation, share(2))
        await coordinator.publish(later, share(0, hashes=0xCD))
        assert (await asyncio.wait_for(waiting, 1.0)).offered == weights(0, 0xCD)

    asyncio.run(story())


def test_events_are_recorded_with_the_run_that_is_trained(tmp_path: Path):
    folders = [tmp_path / name for name in "ab"]
    events = SeriesEvents([(folder, 4) for folder in folders])
    for folder in folders:
        folder.mkdir()
    events("engine", "one")
    record_checkpoint(folders[0], 2, "path")
    events("engine", "two")
    record_checkpoint(folders[0], 4, "path")
    events("engine", "three")
    record_checkpoint(folders[1], 4, "path")
    events("engine", "four")
    told = [[event["message"] for event in read_json_lines(folder / EVENTS)] for folder in folders]
    assert told == [["one", "two"], ["three", "four"]]
