"""Runs whose engines load newer weights while sequences are in flight."""

import pytest
import torch

from srft_ray import fit, make_config
from srft_ray.config.schema import ModelSection
from srft_ray.models import load_model
from tests.conftest import base_config
from tests.ray.conftest import Run
from tests.ray.faults import run_with_three_deaths

pytestmark = pytest.mark.full
IN_FLIGHT = {"in_flight": True, "max_staleness": 1}


def spans_of(row):
    """(version, first token, end) of a row of the ledger."""
    spans = row["spans"] or [{"version": row["policy_version"], "first": 0}]
    ends = [span["first"] for span in spans[1:]] + [len(row["response_ids"])]
    return [(span["version"], span["first"], end) for span, end in zip(spans, ends, strict=True)]


def check_spans(run, max_staleness):
    """Spans follow each other, and the bound holds for the oldest of each response."""
    for row in run.rollouts:
        versions = [version for version, _, _ in spans_of(row)]
        assert versions == sorted(set(versions)) and versions[0] == row["policy_version"]
        assert row["step"] - max_staleness <= versions[0] <= versions[-1] <= row["step"]
        assert all(first < end for _, first, end in spans_of(row)) and spans_of(row)[0][1] == 0
    shares = [record["staleness/mixed"] for record in run.metrics]
    mixed = [row for row in run.rollouts if row["spans"]]
    assert sum(shares) > 0 and mixed
    print(f"share of responses of several versions, by step: {shares}")


def policy_of(run, base, version):
    folder = run.dir / f"checkpoints/step-{version}/hf" if version else base
    return load_model(ModelSection(str(folder)), torch.float32, activation_checkpointing=False)


def differences(policy, rows, version):
    """Of the engine's log-probs of the tokens that this version sampled from those of a policy."""
    found = []
    for row in rows:
        for of_span, first, end in spans_of(row):
            if of_span != version:
                continue
            ids = torch.tensor(row["prompt_ids"] + row["response_ids"][:end])
            begin = len(row["prompt_ids"]) + first
            with torch.no_grad():
                logp_TV = policy(ids[None]).logits[0, begin - 1 : -1].log_softmax(-1)
            expected = logp_TV.gather(-1, ids[begin:, None])[:, 0]
            found.append((expected - torch.tensor(row["logprobs"][first:end])).abs())
    return torch.cat(found)


@pytest.mark.usefixtures("local_ray")
def test_every_span_of_a_run_is_of_the_version_that_it_names(tmp_path, tiny_model):
    values = base_config(
        tmp_path,
        tiny_model,
        model={"max_length": 512},
        algorithm={"name": "grpo"},
        rollout={**IN_FLIGHT, "num_rollouts": 4, "max_new_tokens": 400},
        learner={"lr": 1e-3, "micro_batch_tokens": 8192},
        trainer={"steps": 6, "groups_per_step": 8, "checkpoint_every": 1},
    )
    run = Run(fit(make_config(values)).run_dir)
    run.check_exactly_once(6, 8)
    check_spans(run, max_staleness=1)
    # A version that was replaced while no sequence was sampled has sampled nothing.
    used = {version for row in run.rollouts for version, _, _ in spans_of(row)}
    assert len(used) > 2
    for version in used:
        policy = policy_of(run, tiny_model, version)
        gaps = differences(policy, run.rollouts, version)
        assert gaps.max() <= 1e-4, (version, gaps.max())
        if version:  # the weights are really others
            before = policy_of(run, tiny_model, version - 1)
            assert differences(before, run.rollouts, version).max() > 1e-3
    # The learners measure what they can: the spans of the version that they train.
    measured = [record for record in run.metrics if record["parity/tokens"]]
    assert len(measured) > 1
    assert all(record["parity/abs_logprob_diff_max"] <= 1e-4 for record in measured)
    assert all(record["parity/probe_abs_logprob_diff"] <= 1e-4 for record in run.metrics)


def test_runs_that_are_disturbed_lose_and_repeat_nothing(tmp_path):
    more = [f"rollout.{name}={value}".lower() for name, value in IN_FLIGHT.items()]
    done = run_with_three_deaths(tmp_path, *more, "algorithm={name: grpo}")
    check_spans(done, max_staleness=1)
