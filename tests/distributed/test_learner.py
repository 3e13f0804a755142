"""Learning rates, and how groups are cut into micro-batches."""

import pytest
import torch

from algorithms import SFT, Completion, Group, Schedule, Stage
from srft_ray.config.schedule import learning_rate
from srft_ray.config.training import LearnerSection
from srft_ray.train.batching import collate, cut, trained_sequences


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.775, 0.55, 0.325]),
        ("cosine", [0.5, 1.0, 1.0, 0.8681981, 0.55, 0.2318019]),
    ],
)
def test_learning_rate(schedule, expected):
    config = LearnerSection(lr=1.0, lr_schedule=schedule, warmup_steps=2, min_lr_ratio=0.1)
    assert [learning_rate(config, Stage(SFT(), 0, 6), step) for step in range(6)] == pytest.approx(expected)


def test_a_stage_has_its_own_rate_and_schedule():
    config = LearnerSection(lr=1.0, lr_schedule="linear")
    assert learning_rate(config, Stage(SFT(), 10, 4, Schedule(lr=0.2)), 12) == pytest.approx(0.1)


def group(*lengths):
    completions = [
        Completion(
            i,
            "rollout" if i else "demo",
            "",
            list(range(10, 10 + n)),
            [-0.5] * n if i else None,
            3,
            reward=i,
            advantage=-i,
        )
        for i, n in enumerate(lengths)
    ]
    return Group(3, 0, "", [1, 2, 3], "", completions=completions)


def test_micro_batches_hold_every_sequence_once_within_the_budget():
    groups = [group(5, 9, 1), group(2, 30), group(7)]
    batches = cut(trained_sequences(groups), 40, 3)
    assert all(batch.input_ids_BL.numel() <= 40 for batch in batches)
    assert sum(batch.batch.mask_BT.shape[0] for batch in batches) == 6
    assert sum(int(batch.batch.mask_BT.sum()) for batch in batches) == 5 + 9 + 1 + 2 + 30 + 7


def test_collation_aligns_prompts_responses_and_labels():
    one = group(2, 3)
    batch = collate([(one, completion) for completion in one.completions], 3)
    assert batch.input_ids_BL.tolist() == [[1, 2, 3, 10, 11, 0], [1, 2, 3, 10, 11, 12]]
    assert batch.input_ids_BL[batch.rows_N, batch.positions_N].tolist() == [10, 11, 10, 11, 12]
    assert batch.batch.is_demo_B.tolist() == [True, False] and batch.batch.advantages_B.tolist() == [0, -1]
    assert batch.fresh_BT.tolist() == [
        [False] * 3,
        [True] * 3,
    ]  # version 3 is the policy of step 3; demonstrations never count
    assert batch.align(torch.tensor([1.0, 2, 3, 4, 5])).tolist() == [[1, 2, 0], [3, 4, 5]]


def test_an_empty_micro_batch_keeps_the_graph_and_adds_nothing():
    batch, values = collate([], 0), torch.tensor([-2.0], requires_grad=True)
    aligned = batch.align(values)
    assert not batch.batch.mask_BT.any() and aligned.abs().sum() == 0
    aligned.sum().backward()
    assert values.grad.tolist() == [0.0]
