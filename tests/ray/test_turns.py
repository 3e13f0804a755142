"""Rollouts of several turns on the real stack: the calculator of the examples."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from examples.calculator import calculate
from srft_ray import fit, load_config
from srft_ray.observe.journal import read_json_lines

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(local_ray, tmp_path_factory):
    """A run of three steps, and its ledger."""
    folder = tmp_path_factory.mktemp("turns")
    settings = [
        f"run.dir={folder}",
        f"model.path={ROOT / 'examples/tiny/base'}",
        f"rollout.environment={ROOT / 'examples/calculator.py'}:calculate",
        "trainer.steps=3",
        "trainer.groups_per_step=4",
        "trainer.evaluate_every=3",
        "evaluation.data.heldout.size=8",
        "evaluation.samples=2",
    ]
    result = fit(load_config(ROOT / "examples/calculator.yaml", settings))
    return result, pq.read_table(result.run_dir / "groups").to_pylist()


def test_the_calculator_answers_and_its_tokens_are_no_part_of_the_loss(trained):
    result, rows = trained
    answered = 0
    tokens = dict.fromkeys(range(3), 0)
    for row in rows:
        response, logprobs = row["response"], row["logprobs"]
        tokens[row["step"]] += sum(value is not None for value in logprobs)
        assert len(logprobs) == len(row["response_ids"])
        # Tokens of the tiny model are characters, and the last one may end the sequence.
        for place in range(1, len(response)):
            if logprobs[place] is None and logprobs[place - 1] is not None:
                said = calculate(response[:place], "", {})
                assert said and response[place:].startswith(said)
                answered += 1
    assert answered > 20
    for record in read_json_lines(result.run_dir / "metrics.jsonl"):
        assert record["tokens"] == tokens[record["step"]]
        assert record["parity/abs_logprob_diff_max"] < 1e-4
        assert record["parity/tokens"] == record["tokens"]


def test_evaluations_use_the_calculator_too(trained):
    result, _ = trained
    found = pq.read_table(result.run_dir / "evaluations" / "heldout").to_pylist()
    assert len(found) == 2 * 8 * 2
    assert any(None in row["logprobs"] for row in found)
