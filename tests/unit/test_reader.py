"""Which prompt stands at which place of the stream, whatever the algorithm."""

from dataclasses import replace

import numpy as np
import pytest

from algorithms import DAPO, GRPO, REGISTRY, SFT, SRFT, Completion, Schedule, TwoStage
from srft_ray.config.load import make_config
from srft_ray.config.resolve import resolve
from srft_ray.data.history import VISIT, PromptHistory
from srft_ray.data.prepare import prepare
from srft_ray.data.reader import GroupReader, GroupSettings
from srft_ray.rollout.credit import REFILL_DISTANCE, RefillPolicy
from srft_ray.rollout.requests import sequence_seed
from srft_ray.run.preflight import plan_stream
from tests.conftest import base_config, write_jsonl

ROWS = [
    {"prompt": f"p{n}", "answer": "1", **({"demonstration": f"d{n}"} if n % 3 else {})} for n in range(30)
]


@pytest.fixture(scope="module")
def reader(tmp_path_factory, tiny_model, tokenizer):
    tmp_path = tmp_path_factory.mktemp("reader")

    def make(algorithm, **trainer):
        config = make_config(
            base_config(
                tmp_path,
                tiny_model,
                data={"path": str(write_jsonl(tmp_path / "rows.jsonl", ROWS))},
                trainer={"steps": 4, "groups_per_step": 4, **trainer},
            )
        )
        resolved = resolve(config, algorithm)
        plan = plan_stream(resolved, {})
        train = prepare(config.data, tokenizer, resolved.token_limits, tmp_path / "prepared", config.run.seed)
        rollout = config.rollout
        settings = GroupSettings(config.run.seed, rollout.num_rollouts, rollout.max_new_tokens, 1, {})
        made = GroupReader(settings, algorithm, plan, 0, train, {})
        history = PromptHistory(train.counts.kept, 1)
        history.extend(config.trainer.steps, np.empty(0, VISIT))
        made.history = lambda before: history
        return made

    return make


def read(reader):
    groups = reader.read({"position": np.arange(reader.plan.length(0, reader.plan.steps))})
    return RefillPolicy(reader).refill_without_rollouts(groups)


@pytest.fixture(scope="module")
def groups_of_srft(reader):
    return read(reader(SRFT()))


@pytest.mark.parametrize("cls", REGISTRY.values(), ids=REGISTRY)
def test_every_algorithm_has_the_same_prompts_and_seeds_in_the_same_places(reader, groups_of_srft, cls):
    algorithm = (
        cls(first_schedule=Schedule(), second_schedule=Schedule()) if issubclass(cls, TwoStage) else cls()
    )
    found = read(reader(algorithm))
    assert [group.step for group in found] == [group.step for group in groups_of_srft]
    for one, other in zip(found, groups_of_srft, strict=True):
        if one.attempt == 0:
            assert (one.group_id, one.prompt, one.max_new_tokens) == (
                other.group_id,
                other.prompt,
                other.max_new_tokens,
            )
            assert sequence_seed(0, one, 1) == sequence_seed(0, other, 1)
    assert any(group.attempt for group in found) == isinstance(algorithm.stage(0, 4).algorithm, SFT)


def test_sft_takes_later_prompts_for_those_without_demonstration(reader):
    groups = read(reader(SFT()))
    assert all(group.demonstrations for group in groups)
    assert len({group.group_id for group in groups}) == 16
    assert all(
        group.group_id == place + REFILL_DISTANCE * group.attempt for place, group in enumerate(groups)
    )


def test_stages_go_on_where_the_one_before_ended(reader):
    two = TwoStage(first_steps=2, first_schedule=Schedule(groups_per_step=2))
    assert [group.group_id for group in read(reader(two)) if not group.attempt or group.step > 1][-8:] == [
        *range(4, 12)
    ]
    second = read(reader(GRPO(), steps=2, first_group=4))
    assert [g.prompt for g in second] == [g.prompt for g in read(reader(two))][-8:]
    assert [sequence_seed(0, g, 0) for g in second] == [
        sequence_seed(0, g, 0) for g in read(reader(two))[-8:]
    ]


def test_a_refill_counts_what_it_discards(reader):
    source = reader(DAPO(max_refills=1))
    group = read(source)[0]
    group.completions = [Completion(n, "rollout", "", [1, 2, 3], reward=0.0, prefix=n) for n in range(2)]
    refills = RefillPolicy(source)
    assert refills.lacks_signal(group)
    refill = refills.refill(group)
    assert (refill.group_id, refill.attempt, refill.discarded_tokens, refill.step) == (
        REFILL_DISTANCE,
        1,
        5,
        0,
    )
    assert not refills.lacks_signal(replace(refill, completions=group.completions)), "the limit is one"
    group.completions[0].reward = 1.0
    assert not refills.lacks_signal(group)
