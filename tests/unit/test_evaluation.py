"""The evaluation ledger, the figures that are computed from it, and the settings of each set."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from algorithms import GRPO, Completion, Group
from srft_ray import UserError
from srft_ray.commands.evaluation_folder import evaluation_folder, evaluation_identity, model_name
from srft_ray.commands.evaluation_sampling import first_missing, write_records
from srft_ray.config.load import make_config
from srft_ray.config.resolve import resolve
from srft_ray.data.plan import Segment, StepSize, StreamPlan
from srft_ray.data.prepare import prepare
from srft_ray.data.reader import GroupReader, GroupSettings
from srft_ray.observe import evaluation_ledger as ledger
from srft_ray.observe.evaluation import evaluation_record
from srft_ray.rollout.judges import Judges
from srft_ray.run.preflight import prepare_evaluation
from tests.conftest import base_config

REWARDS = [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]


def rollout(sample, reward):
    verdict = "match" if reward else "no_answer"
    return Completion(
        sample,
        "rollout",
        "text\ud800",
        [5] * (2 + sample),
        [-0.5] * (2 + sample),
        4,
        seed=sample,
        finish_reason="length" if sample else "stop",
        reward=reward,
        verdict=verdict,
        answer="4" if reward else None,
        reason="because",
    )


def group(number, rewards=None, **metadata):
    rewards = REWARDS[number] if rewards is None else rewards
    completions = [rollout(sample, reward) for sample, reward in enumerate(rewards)]
    return Group(
        4, number, f"p{number}", [1, 2], "4", metadata, completions, "held", started_at=1.0, finished_at=3.5
    )


def test_parts_are_joined_in_the_order_of_prompts_and_samples(tmp_path):
    ledger.write_part(tmp_path, "held", 4, 0, [group(2), group(0)])
    ledger.write_part(tmp_path, "held", 4, 1, [group(1), Group(4, -1, "", [], "")])
    assert ledger.parts_of(tmp_path, "held", 4) == [0, 1] and ledger.tables(tmp_path) == []
    assert ledger.finished_groups(tmp_path, "held", 4) == {0, 1, 2}
    joined = ledger.join(tmp_path, "held", 4, [0, 1])
    table = ledger.read(tmp_path, "held", 4)
    assert table.equals(joined) and ledger.finished_groups(tmp_path, "held", 4) == {0, 1, 2}
    assert [file.name for file in (tmp_path / "evaluations/held").iterdir()] == ["step-4.parquet"]
    rows = table.to_pylist()
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [(p, s) for p in range(3) for s in (0, 1)]
    assert rows[0] == {
        "set": "held",
        "step": 4,
        "prompt_id": 0,
        "sample": 0,
        "group_id": 0,
        "seed": 0,
        "policy_version": 4,
        "prompt": "p0",
        "response": "text?",
        "prompt_ids": [1, 2],
        "response_ids": [5, 5],
        "logprobs": [-0.5, -0.5],
        "reward": 1.0,
        "verdict": "match",
        "reason": "because",
        "answer": "4",
        "reference": "4",
        "finish_reason": "stop",
        "seconds": 2.5,
    }


def test_a_crash_while_parts_are_removed_loses_no_row(tmp_path, monkeypatch):
    plan = StreamPlan(0, (StepSize(0, 1),), 4, 1, {"held": 3}, 1)
    for number in range(3):
        ledger.write_part(tmp_path, "held", 0, number, [dataclasses.replace(group(number), step=0)])
    unlink, removed = Path.unlink, []

    def crash(path, **options):
        if path.suffix == ".part":
            removed.append(path)
            if len(removed) == 2:
                raise KeyboardInterrupt
        unlink(path, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", crash)
        write_records(tmp_path, plan)
    assert ledger.parts_of(tmp_path, "held", 0) == [1, 2] and first_missing(tmp_path, plan) is None
    (record,) = write_records(tmp_path, plan)
    assert record["prompts"] == 3 and record["avg"] == 50.0
    assert ledger.read(tmp_path, "held", 0).num_rows == 6 and ledger.parts_of(tmp_path, "held", 0) == []


def test_a_sample_with_a_row_of_its_own_says_which_it_is(tmp_path):
    place = {"evaluation": {"prompt_id": 7, "sample": 3}}
    row = ledger.rows([group(0, [1.0], **place)])[0]
    assert (row["prompt_id"], row["sample"], row["group_id"]) == (7, 3, 0)


def test_repeated_evaluations_are_removed_and_nothing_else(tmp_path):
    for step in (0, 2, 10):
        ledger.write_part(tmp_path, "held", step, 0, [group(0)])
        ledger.join(tmp_path, "held", step, [0])
    ledger.write_part(tmp_path, "held", 2, 1, [group(1)])
    (tmp_path / "evaluations/held/step-notes.txt").touch()
    ledger.truncate(tmp_path, 2)
    left = {file.name for file in (tmp_path / "evaluations/held").iterdir()}
    assert left == {"step-0.parquet", "step-notes.txt"} and ledger.tables(tmp_path) == [("held", 0)]


@pytest.mark.parametrize("name", ["../up", "a/b", ".", "..", "a=b", "ä", "x.y"])
def test_any_name_of_a_set_stays_in_its_folder(tmp_path, name):
    ledger.write_part(tmp_path, name, 0, 0, [group(0)])
    ledger.join(tmp_path, name, 0, [0])
    assert ledger.tables(tmp_path) == [(name, 0)]
    assert ledger.set_folder(tmp_path, name).parent == tmp_path / "evaluations"
    assert ledger.read(tmp_path, name, 0).column_names == ledger.SCHEMA.names


def test_figures_are_computed_from_the_ledger():
    table = pa.Table.from_pylist(ledger.rows([group(0), group(1), group(2)]), ledger.SCHEMA)
    record = evaluation_record("held", 4, table)
    assert record["avg"] == pytest.approx(50.0) and record["pass"] == pytest.approx(200 / 3)
    # Right answers stand alone in prompt 0, since what has no answer does not vote.
    assert record["maj"] == pytest.approx(200 / 3)
    assert record["avg_interval"] == pytest.approx(196.0 * np.std([0.5, 0, 1], ddof=1) / np.sqrt(3))
    assert record["avg_low"] < 50 < record["avg_high"]
    assert (record["prompts"], record["samples"], record["length"]) == (3, 2, 2.5)
    assert (record["length_correct"], record["length_wrong"]) == (pytest.approx(7 / 3), pytest.approx(8 / 3))
    assert (record["truncated"], record["unanswered"], record["unjudged"]) == (0.5, 0.5, 0.0)
    assert record["entropy"] == pytest.approx(0.5)


def config_of(tmp_path, tiny_model, **sets):
    return make_config(
        base_config(
            tmp_path,
            tiny_model,
            evaluation={"samples": 3, "temperature": 0.6, "top_p": 0.9, "data": sets},
            rollout={"max_new_tokens": 32},
        )
    )


def test_a_set_has_its_own_sampling_and_the_run_s_where_it_says_nothing(tmp_path, tiny_model, tokenizer):
    own = {"samples": 1, "max_prompts": 2, "temperature": 0.8, "top_p": 0.5, "max_new_tokens": 64}
    resolved = resolve(config_of(tmp_path, tiny_model, a={}, b={**own, "template": "Q {prompt}"}), GRPO())
    a, b = resolved.evaluation["a"], resolved.evaluation["b"]
    assert (a.samples, a.max_prompts, a.temperature, a.top_p, a.max_new_tokens) == (3, None, 0.6, 0.9, 32)
    assert {key: getattr(b, key) for key in own} == own and b.data.template == "Q {prompt}"
    data = prepare_evaluation(resolved, tokenizer)
    assert data["a"].row(0)["prompt"] == "What is 0 + 0?\n" and data["b"].row(0)["prompt"].startswith("Q ")
    plan = StreamPlan(0, (StepSize(0, 1),), 1, 1, {"a": 8, "b": 2}, 1)
    reader = GroupReader(GroupSettings(0, 2, 32, 1, resolved.evaluation), GRPO(), plan, 0, data["a"], data)
    first, last = reader.read({"position": np.array([0, 9])})
    assert (first.dataset, first.num_rollouts, first.max_new_tokens) == ("a", 3, 32)
    assert (last.dataset, last.num_rollouts, last.max_new_tokens) == ("b", 1, 64)
    reader.plan = dataclasses.replace(plan, bundles={"a": 3})  # three positions for eight prompts
    found = [(each.dataset, each.group_id) for each in reader.read({"position": np.arange(5)})]
    assert found == [*(("a", place) for place in range(8)), ("a", -1), ("b", 0), ("b", 1)]
    # Demonstrations do not travel with the groups: learners read them.
    assert first.completions == last.completions == []
    segment = next(segment for segment in plan.segments(0) if segment.dataset == "a")
    held_out = reader.held_out_group(segment, 0)
    assert held_out.prompt == first.prompt
    assert [(demo.sample, demo.origin) for demo in held_out.completions] == [(3, "demo")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample": 3}, "Unknown config key 'evaluation.data.a.sample': did you mean 'samples'"),
        ({"samples": 0}, "In evaluation.data.a: data.samples must be at least 1"),
        ({"top_p": 1.5}, "In evaluation.data.a: data.top_p must be at most 1"),
        ({"max_new_tokens": 128}, "evaluation.data.a.max_new_tokens=128 leaves no room for a prompt"),
        ({"max_new_tokens": None, "samples": 0}, "In evaluation.data.a: data.samples must be at least 1"),
        ({"temperature": "hot"}, "Wrong value for 'evaluation.data.a.temperature'"),
    ],
)
def test_wrong_settings_of_a_set_are_refused(tmp_path, tiny_model, settings, message):
    with pytest.raises(UserError) as refused:
        resolve(config_of(tmp_path, tiny_model, a=settings), GRPO())
    assert message in str(refused.value)


def test_null_stands_for_the_run_s_own(tmp_path, tiny_model):
    keys = dict.fromkeys(("samples", "temperature", "top_p", "max_new_tokens"))
    section = resolve(config_of(tmp_path, tiny_model, a=keys), GRPO()).evaluation["a"]
    assert [getattr(section, key) for key in keys] == [3, 0.6, 0.9, 32]


def test_a_verifier_of_a_set_must_exist(tmp_path, tiny_model, tokenizer):
    resolved = resolve(config_of(tmp_path, tiny_model, a={"verifier": "mth"}), GRPO())
    with pytest.raises(UserError, match="did you mean 'math'"):
        prepare_evaluation(resolved, tokenizer)


def test_sets_are_judged_by_their_own_verifier(tmp_path, tiny_model, monkeypatch):
    made = []

    def record(*words, **bounds):
        made.append(words)
        return words

    monkeypatch.setattr("srft_ray.rollout.judges.VerifierPool", record)
    sets = {"a": {}, "b": {"verifier": "tasks"}, "c": {"verifier": "tasks"}, "d": {"verifier": "own.py:f"}}
    resolved = resolve(config_of(tmp_path, tiny_model, **sets), GRPO())
    judges = Judges(resolved.config.verifier, None, resolved.evaluation)
    assert [words[:2] for words in made] == [("math", None)], "the others wait until they are needed"
    assert judges.of("train") is judges.of("a") and judges.of("b") is judges.of("c")
    judges.of("d")
    assert [words[0] for words in made] == ["math", "tasks", "math"]
    assert [words[1] and words[1].rpartition("/")[2] for words in made] == [None, None, "own.py:f"]


def test_an_evaluation_goes_on_at_the_first_block_that_lacks_a_group(tmp_path):
    plan = StreamPlan(0, (StepSize(0, 1),), 4, 1, {"a": 6, "held": 7}, 1)
    assert first_missing(tmp_path, plan) == 0
    for number in range(6):
        ledger.write_part(tmp_path, "a", 0, number, [dataclasses.replace(group(0), group_id=number, step=0)])
    assert first_missing(tmp_path, plan) == 8, "a is padded to two blocks"
    six = [dataclasses.replace(group(0), group_id=number, step=0) for number in range(6)]
    ledger.write_part(tmp_path, "held", 0, 0, six)
    assert first_missing(tmp_path, plan) == 12, "the block of groups 4 to 6"
    ledger.write_part(tmp_path, "held", 0, 1, [dataclasses.replace(group(0), group_id=6, step=0)])
    assert first_missing(tmp_path, plan) is None
    assert list(plan.segments(0))[1] == Segment("held", 0, 7, 8)


def test_the_folder_of_an_evaluation_depends_on_all_that_its_result_does(tmp_path, tiny_model):
    config = config_of(tmp_path, tiny_model, a={})
    folder = evaluation_folder(resolve(config, GRPO()))
    assert folder.parent == tmp_path / "runs/evaluations" and folder.name.startswith(f"{tiny_model.name}-")
    assert evaluation_folder(resolve(config, GRPO())) == folder
    environment = tmp_path / "world.py"
    environment.write_text("def act(text, state):\n    return None\n")
    changes = {
        "stop": ["</a>"],
        "max_turns": 2,
        "engine": {"block_size": 32},
        "environment": f"{environment}:act",
    }
    found = []
    for changed in ({}, *({key: value} for key, value in changes.items())):
        settings = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, **changed))
        found.append(evaluation_identity(dataclasses.replace(resolve(config, GRPO()), config=settings)))
    assert len({str(identity) for identity in found}) == 1 + len(changes)
    config.evaluation.temperature = 0.7
    other = resolve(config, GRPO())
    assert evaluation_folder(other) != folder
    with pytest.raises(UserError, match="holds another evaluation"):
        evaluation_folder(other, folder)
    (tmp_path / "data.jsonl").write_text((tmp_path / "data.jsonl").read_text() + "\n")
    config.evaluation.temperature = 0.6
    assert evaluation_folder(resolve(config, GRPO())) != folder, "the data have changed"
    config.model.path = str(tmp_path / "runs/mine/checkpoints/step-30/hf")
    assert model_name(resolve(config, GRPO())) == "mine-step-30"


def test_prepared_data_do_not_depend_on_how_a_set_is_sampled(tmp_path, tiny_model, tokenizer):
    files = set()
    for samples in (1, 5):
        resolved = resolve(config_of(tmp_path, tiny_model, a={"samples": samples}), GRPO())
        files.add(prepare_evaluation(resolved, tokenizer)["a"].file)
    train = prepare(resolved.config.data, tokenizer, resolved.token_limits, tmp_path / "runs/.data", 0)
    assert files == {train.file}
