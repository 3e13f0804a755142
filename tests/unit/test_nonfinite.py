"""What a run does with an update that is not finite, and with a reward that would make one so."""

import json
import math
from types import SimpleNamespace

import pytest

from algorithms import SFT, Completion, Group, Stage
from srft_ray.config.training import TrainerSection
from srft_ray.observe.journal import read_json_lines
from srft_ray.rollout.credit import set_verdict
from srft_ray.train.nonfinite import Cause, NonFiniteError, describe, dump
from srft_ray.train.worker import LearnerWorker
from srft_ray.verify import Verdict

STAGE = Stage(SFT(), 0, 9)


def rollout(**values):
    return Completion(2, "rollout", "\ud800 six", [5, 6], [-0.5, -math.inf], 3, **values)


def found():
    group = Group(3, 7, "What?", [1], "6")
    return [Cause(group, rollout(advantage=math.inf, reward=math.nan), "advantage", math.inf)]


def worker(run_dir, learner, **trainer):
    made = SimpleNamespace(
        rank=0,
        learner=SimpleNamespace(step=learner),
        job=SimpleNamespace(run_dir=run_dir, trainer=TrainerSection(**trainer)),
        skipped_in_a_row=0,
        _temperature=lambda stage: 1.0,
    )
    return lambda step: LearnerWorker._learn(made, step, [], STAGE)


def fail(groups, step, stage, temperature):
    raise NonFiniteError(f"Step {step}: the update is not finite.", found())


def test_by_default_the_run_stops_and_the_sequences_are_kept(tmp_path):
    learn = worker(tmp_path, fail)
    with pytest.raises(NonFiniteError, match=r"Step 3: .* The run ends here, and writes no checkpoint"):
        learn(3)
    record = json.loads((tmp_path / "nonfinite/step-3-0.json").read_text())[0]
    assert (record["step"], record["group_id"], record["sample"], record["cause"]) == (3, 7, 2, "advantage")
    assert record["advantage"] == "inf" and record["reward"] == "nan" and record["logprobs"] == [-0.5, "-inf"]
    assert record["response"] == "\ud800 six", "a lone surrogate is escaped"


def test_skipped_steps_are_counted_and_limited(tmp_path):
    good = [1]

    def sometimes(groups, step, stage, temperature):
        return {"loss": 0.5} if step in good else fail(groups, step, stage, temperature)

    learn = worker(tmp_path, sometimes, on_nonfinite="skip", max_nonfinite=2)
    assert learn(0) == {"tokens": 0.0, "steps/skipped_nonfinite": 1.0}
    assert learn(1) == {"loss": 0.5, "steps/skipped_nonfinite": 0.0}
    assert learn(2)["steps/skipped_nonfinite"] == learn(3)["steps/skipped_nonfinite"] == 1.0
    with pytest.raises(NonFiniteError):
        learn(4)
    events = [event["message"] for event in read_json_lines(tmp_path / "events.jsonl")]
    assert [event[-9:] for event in events] == ["in a row."] * 3 and "2 of 2" in events[-1]


def test_a_message_names_some_of_many_causes():
    message = describe(3, [str(cause) for cause in found()] * 7, all_numbers_finite=False)
    assert "group 7, sample 2: advantage inf; " in message and "; and 2 more." in message


def test_storage_that_refuses_does_not_hide_the_cause(tmp_path):
    (tmp_path / "nonfinite").write_text("")
    dump(tmp_path, 3, 0, found())
    assert "cannot be written" in read_json_lines(tmp_path / "events.jsonl")[0]["message"]


@pytest.mark.parametrize("reward", [1e300, -1e39, math.inf, math.nan])
def test_a_reward_that_is_not_finite_in_float32_is_an_error(reward):
    group = Group(0, 0, "", [1], "6", completions=[rollout(), rollout()])
    verdicts = [Verdict("match", reward, "6"), Verdict("match", 3e38, "6")]
    for completion, verdict in zip(group.completions, verdicts, strict=True):
        set_verdict(completion, verdict)
    assert [(c.verdict, c.reward) for c in group.completions] == [("error", 0.0), ("match", 3e38)]
