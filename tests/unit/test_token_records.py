"""What an update uses of each token reaches the ledger, as the terms used it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from algorithms import SFT, SRFT, Completion, Group, PolicyOutput
from srft_ray.observe import ledger
from srft_ray.observe.ledger_reading import files_by_step, read_rows, read_step
from srft_ray.observe.ledger_reference import LEDGER, TOKEN_LEDGER
from srft_ray.train.batching import collate
from srft_ray.train.token_records import record_tokens


@pytest.fixture
def group():
    rollout = Completion(
        0, "rollout", "a", [5, 6, 7], [0.0, -1.0, -2.0], 0, reward=1.0, advantage=0.5, prefix=1
    )
    wrong = Completion(1, "rollout", "b", [5], [-3.0], 0, reward=0.0, advantage=-1.0)
    demonstration = Completion(2, "demo", "c", [8, 9], advantage=0.5)
    return Group(3, 7, "p", [1, 2], "r", {}, [rollout, wrong, demonstration], max_new_tokens=4)


def recorded(group, algorithm):
    batch = collate([(group, completion) for completion in group.completions], step=3)
    shape = batch.batch.mask_BT.shape
    logprobs = torch.arange(1.0, 1.0 + shape.numel()).reshape(shape).neg() / 4
    policy = PolicyOutput(logprobs.requires_grad_(), torch.full(shape, 0.5))
    record_tokens(algorithm, batch, policy)
    return policy, batch


def test_figures_are_aligned_and_weights_are_those_of_the_terms(group):
    policy, batch = recorded(group, SRFT())
    first, wrong, demonstration = (completion.measured for completion in group.completions)
    assert first["learner_logprobs"] == pytest.approx([-0.25, -0.5, -0.75])
    assert first["entropies"] == [0.5, 0.5, 0.5] and len(wrong["entropies"]) == 1
    assert first["ratios"][0] is None, "a prefix is not sampled"
    assert first["ratios"][1:] == pytest.approx(torch.tensor([0.5, 1.25]).exp().tolist())
    assert demonstration["ratios"] == [None, None]
    assert set(first["weights"]) == {term.name for term in SRFT().terms()}
    for term in SRFT().terms():
        used = term.weight(batch.batch, policy.where(batch.batch.mask_BT)).expand_as(batch.batch.mask_BT)
        selected = term.select(batch.batch)
        for row, completion in enumerate(group.completions):
            for token, found in enumerate(completion.measured["weights"][term.name]):
                assert (found is not None) == bool(selected[row, token]), term.name
                assert found is None or found == pytest.approx(float(used[row, token]))
    assert demonstration["weights"]["sft_demo"] == pytest.approx([0.5 * 2.718281828**-0.5] * 2)


def test_the_columns_are_written_and_read_if_they_are_asked_for(group, tmp_path):
    (tmp_path / "groups").mkdir()
    group.step = 2
    ledger.write(tmp_path, 2, 0, [group], tokens=True)  # as of a step whose update was refused
    group.step = 3
    recorded(group, SFT())
    ledger.write(tmp_path, 3, 0, [group], tokens=True)
    file = tmp_path / "groups/step-000003-0000.parquet"
    assert pq.read_schema(file).names == [*LEDGER, *TOKEN_LEDGER] == ledger.SCHEMA_WITH_TOKENS.names
    ((_, files),) = [one for one in files_by_step(tmp_path).items() if one[0] == 3]
    rows = read_rows(files, 3, 1)
    assert rows[0]["weights"] == [("sft_demo", [None, None, None])] and rows[2]["weights"] == [
        ("sft_demo", [1.0, 1.0])
    ]
    assert read_rows(files_by_step(tmp_path)[2], 2, 1)[0]["weights"] is None
    ledger.write(tmp_path, 3, 0, [group])
    assert pq.read_schema(file).names == ledger.SCHEMA.names


def test_merged_files_are_read_by_step(group, tmp_path):
    (tmp_path / "groups").mkdir()
    for step in range(3):
        group.step = step
        ledger.write(tmp_path, step, 0, [group])
    table = read_step(files_by_step(tmp_path)[1], 1)
    both = pq.read_table(tmp_path / "groups/step-000000-0000.parquet")
    for step in (0, 1):
        (tmp_path / f"groups/step-{step:06d}-0000.parquet").unlink()
    pq.write_table(pa.concat_tables([both, table]), tmp_path / "groups/steps-000000-000999.parquet")
    files = files_by_step(tmp_path)
    assert sorted(files) == [0, 1, 2] and files[0] == files[1]
    assert read_step(files[1], 1).equals(table) and read_step(files[0], 0, ["sample"])[
        "sample"
    ].to_pylist() == [0, 1, 2]
