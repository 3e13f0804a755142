"""The config is strict at the door, and its resolved form is the config again."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from srft_ray.config.checks import check_values
from srft_ray.config.load import all_keys, load_config, make_config, read_record, to_yaml
from srft_ray.config.schema import Config
from srft_ray.config.settings import Bounds
from srft_ray.errors import UserError

MINIMAL = "model: {path: m}\ndata: {path: d}\n"


def test_what_is_written_is_read_back(tmp_path: Path):
    config = make_config({"model": {"path": "m"}, "data": {"path": "d", "system_prompt": r"Write \${n}$."}})
    assert config.data.system_prompt == "Write ${n}$."
    (tmp_path / "written.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "written.yaml") == config
    assert read_record(tmp_path / "written.yaml")["data"]["system_prompt"] == "Write ${n}$."


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL)
    return path


def made(**sections: Any) -> Config:
    required = {"model": {"path": "m"}, "data": {"path": "d"}}
    return make_config(
        {
            **required,
            **{
                name: {**required.get(name, {}), **keys} if isinstance(keys, dict) else keys
                for name, keys in sections.items()
            },
        }
    )


def checked(**sections: dict[str, Any]) -> Config:
    """The checks of values alone: YAML and types take 30 ms a time."""
    config = Config()
    for name, keys in sections.items():
        setattr(config, name, dataclasses.replace(getattr(config, name), **keys))
    check_values(config)
    return config


def message(call: Any, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **keywords)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_file_then_overrides_then_defaults(file: Path):
    file.write_text(
        MINIMAL + "trainer: {steps: 5, groups_per_step: 8}\nalgorithm: {name: grpo, clip_high: 0.28}\n"
    )
    config = load_config(
        file,
        [
            "trainer.steps=7",
            "learner.lr=2e-6",
            "rollout.num_engines=[1, 2]",
            "algorithm.standardize=false",
            "evaluation.data.heldout.path=h.jsonl",
            "run.name=a=b",
            "learner.offload_optimizer=true",
        ],
    )
    assert (config.trainer.steps, config.trainer.groups_per_step) == (7, 8)
    assert (config.learner.lr, config.learner.offload_optimizer, config.learner.zero_stage) == (2e-6, True, 2)
    assert config.rollout.num_engines == [1, 2]
    assert config.algorithm == {"name": "grpo", "clip_high": 0.28, "standardize": False}
    assert config.evaluation.data == {"heldout": {"path": "h.jsonl"}}
    assert config.run.name == "a=b"


def test_the_later_override_wins(file: Path):
    assert load_config(file, ["trainer.steps=3", "trainer.steps=4"]).trainer.steps == 4


def test_the_algorithm_defaults_to_srft(file: Path):
    assert load_config(file).algorithm == {"name": "srft"}


def test_a_dictionary_makes_the_same_config_as_a_file(file: Path):
    assert make_config({"model": {"path": "m"}, "data": {"path": "d"}}) == load_config(file)


def test_values_have_their_declared_types():
    config = made(trainer={"steps": "7"}, learner={"lr": 1, "betas": [0, 1e-1]}, run={"name": 5})
    assert [
        type(v) for v in (config.trainer.steps, config.learner.lr, config.learner.betas[0], config.run.name)
    ] == [int, float, float, str]
    assert type(config.learner.betas) is list


def test_the_run_directory():
    assert made(run={"name": "x", "dir": "here"}).run_dir == Path("here/x")
    assert made(run={"dir": "~/runs"}).run_dir == Path.home() / "runs" / "srft"


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("trainr.steps=3", "'trainer'"),
        ("models.path=x", "'model'"),
        ("evalution.samples=3", "'evaluation'"),
        ("trainer.step=3", "'trainer.steps'"),
        ("model.max_len=3", "'model.max_length'"),
        ("learner.zero=1", "'learner.zero_stage'"),
        ("learner.steps=1", "'trainer.steps'"),
        ("lr=1", "'learner.lr'"),
        ("groups_per_step=4", "'trainer.groups_per_step'"),
        ("rollout.temprature=1", "'rollout.temperature'"),
        ("data.max_length=4", "'model.max_length'"),
        ("verifier.nam=math", "'verifier.name'"),
    ],
)
def test_an_unknown_key_names_the_nearest(file: Path, override: str, near: str):
    key = override.split("=")[0]
    text = message(load_config, file, [override])
    shown = key.split(".")[0] if key.split(".")[0] not in all_keys() else key
    assert text.startswith(f"Unknown config key '{shown}") and f"override '{override}'" in text
    assert f"did you mean {near}" in text


def test_a_key_like_no_other_lists_the_sections():
    text = message(made, zzz=1)
    assert "'zzz'" in text and all(section.name in text for section in dataclasses.fields(Config))


def test_an_unknown_key_of_a_file_names_the_file(file: Path):
    file.write_text(MINIMAL + "trainer: {stepz: 1}\n")
    assert (
        message(load_config, file)
        == f"Unknown config key 'trainer.stepz' in file {file}: did you mean 'trainer.steps'?"
    )


@pytest.mark.parametrize(
    "override",
    [
        "trainer.steps=many",
        "trainer.steps=1.5",
        "trainer.steps=true",
        "trainer.steps=",
        "learner.lr=true",
        "learner.lr=small",
        "learner.offload_optimizer=perhaps",
        "run.loggers=wandb",
        "learner.betas=[a, b]",
        "run.name={a: 1}",
        "trainer.steps.x=3",
        "data.template={prompt}",
    ],
)
def test_a_wrong_type_names_key_and_override(file: Path, override: str):
    key = override.split("=")[0].removesuffix(".x")
    text = message(load_config, file, [override])
    assert text.startswith(f"Wrong value for '{key}") and f"override '{override}'" in text


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("trainer=3", "trainer"),
        ("model=x", "model"),
        ("algorithm=grpo", "algorithm"),
        ("model=null", "model"),
        ("evaluation.data=[1]", "evaluation"),
        ("run.loggers.0=x", "run"),
    ],
)
def test_a_section_must_hold_keys(file: Path, override: str, key: str):
    text = message(load_config, file, [override])
    assert text.startswith("Wrong value for") and f"override '{override}'" in text
    assert f"'{key}" in text


@pytest.mark.parametrize("override", ["trainer.steps", "=3", "steps", "a=[1"])
def test_an_override_that_cannot_be_read(file: Path, override: str):
    assert f"Override '{override}'" in message(load_config, file, [override])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a: [", "is not valid YAML"),
        ("- a\n- b\n", "must hold sections"),
        ("model: {path: m}\n", "'data.path' has no value"),
        ("", "has no value"),
        ("model: {path: m}\nmodel: {path: n}\n", "is not valid YAML"),
        ("data: {path: d, template: '${x}'}\nmodel: {path: m}\n", "data.template"),
    ],
)
def test_bad_files(file: Path, text: str, wanted: str):
    file.write_text(text)
    assert wanted in message(load_config, file)


def test_a_missing_file(tmp_path: Path):
    assert "does not exist" in message(load_config, tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(("value", "pair"), [(1, (1, 1)), (3, (3, 3)), ([1, 4], (1, 4)), ([2, 2], (2, 2))])
def test_counts_are_a_number_or_a_pair(value: Any, pair: tuple[int, int]):
    bounds = Bounds.parse(value, "rollout.num_engines")
    assert (bounds.low, bounds.high) == pair


def test_configs_from_files_and_dictionaries_have_their_values_checked(file: Path):
    assert "trainer.steps must be at least 1" in message(load_config, file, ["trainer.steps=0"])
    assert "trainer.steps must be at least 1" in message(made, trainer={"steps": 0})


@pytest.mark.parametrize(
    "value", [0, -1, True, 1.5, "2", None, [], [1], [1, 2, 3], [2, 1], [0, 2], [1, "2"], {"min": 1}]
)
@pytest.mark.parametrize("key", ["rollout.num_engines", "learner.num_workers"])
def test_other_counts_are_refused(key: str, value: Any):
    section, leaf = key.split(".")
    assert f"{key} must be a whole number of at least 1 or [min, max]" in message(
        checked, **{section: {leaf: value}}
    )


@pytest.mark.parametrize(
    ("section", "key", "value", "wanted"),
    [
        ("run", "device", "gpu", "'cpu'"),
        ("model", "dtype", "bf16", "'bfloat16'"),
        ("model", "dtype", "float", "'float32'"),
        ("data", "format", "jsnl", "'jsonl'"),
        ("data", "overlong", "drp", "'drop'"),
        ("data", "split", "test", "train, heldout"),
        ("learner", "lr_schedule", "cosin", "'cosine'"),
        ("learner", "zero_stage", 4, "0, 1, 2, 3"),
    ],
)
def test_choices(section: str, key: str, value: Any, wanted: str):
    text = message(checked, **{section: {key: value}})
    assert text.startswith(f"{section}.{key} is {value!r}") and wanted in text


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("trainer", "steps", 0),
        ("trainer", "groups_per_step", 0),
        ("trainer", "checkpoint_every", -1),
        ("trainer", "keep_checkpoints", 0),
        ("rollout", "num_rollouts", 0),
        ("rollout", "max_new_tokens", 0),
        ("rollout", "max_staleness", -1),
        ("rollout", "groups_per_task", 0),
        ("data", "max_demonstrations", 0),
        ("data", "size", 0),
        ("evaluation", "samples", 0),
        ("evaluation", "max_prompts", 0),
        ("learner", "micro_batch_tokens", 0),
        ("learner", "weight_decay", -0.1),
        ("learner", "weight_decay", float("nan")),
        ("verifier", "num_workers", 0),
        ("verifier", "memory_mb", 1),
    ],
)
def test_values_below_their_least(section: str, key: str, value: Any):
    assert message(checked, **{section: {key: value}}).startswith(f"{section}.{key} must be at least ")


@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
@pytest.mark.parametrize(
    "key",
    [
        "rollout.temperature",
        "evaluation.temperature",
        "learner.lr",
        "learner.eps",
        "learner.max_grad_norm",
        "verifier.timeout_s",
        "rollout.timeout_s",
        "rollout.gpus_per_engine",
    ],
)
def test_values_above_zero(key: str, value: float):
    section, leaf = key.split(".")
    assert message(checked, **{section: {leaf: value}}).startswith(f"{key} must be above 0")


@pytest.mark.parametrize("betas", [[0.9], [0.9, 0.99, 0.999], [0.9, 1.0], [-0.1, 0.9]])
def test_betas_are_two_numbers_below_one(betas: list[float]):
    assert "learner.betas" in message(checked, learner={"betas": betas})


@pytest.mark.parametrize(
    ("workers", "groups", "culprit"), [(3, 16, 3), ([1, 4], 8, 3), ([2, 3], 4, 3), (5, 4, 5)]
)
def test_groups_must_divide_among_every_number_of_learners(workers: Any, groups: int, culprit: int):
    text = message(checked, learner={"num_workers": workers}, trainer={"groups_per_step": groups})
    assert f"trainer.groups_per_step={groups} is not divisible by {culprit} learners" in text


@pytest.mark.parametrize(("workers", "groups"), [(4, 16), ([1, 4], 12), ([2, 3], 6)])
def test_groups_that_divide(workers: Any, groups: int):
    assert (
        checked(learner={"num_workers": workers}, trainer={"groups_per_step": groups}).learner.num_workers
        == workers
    )


def test_training_rollouts_are_of_the_policy_itself():
    assert "top_p=1.0" in message(checked, rollout={"top_p": 0.95})
    assert checked(evaluation={"top_p": 0.95}).evaluation.top_p == 0.95


@pytest.mark.parametrize("top_p", [0.0, 1.1, float("nan")])
def test_evaluation_top_p_is_a_share(top_p: float):
    assert "evaluation.top_p must be in (0, 1]" in message(checked, evaluation={"top_p": top_p})


def test_a_response_must_leave_room_for_a_prompt():
    assert "leaves no room for a prompt" in message(
        checked, model={"max_length": 64}, rollout={"max_new_tokens": 64}
    )
    assert checked(model={"max_length": 65}, rollout={"max_new_tokens": 64}).model.max_length == 65


def test_the_resolved_yaml_is_the_config_again(file: Path):
    config = made(
        run={"name": "ünï: # x", "loggers": ["wandb"]},
        data={"template": "{system_prompt}\n\n\tQ: {prompt}\nA:", "system_prompt": "yes"},
        algorithm={
            "name": "two_stage",
            "first": {"name": "sft"},
            "first_schedule": {"lr": 5e-5},
            "second": {"name": "grpo", "clip_low": 0.1},
        },
        rollout={"num_engines": [1, 2], "groups_per_task": 2},
        learner={"lr": 1e-6, "eps": 1e-8, "betas": [0.9, 0.95]},
        evaluation={"data": {"heldout": {"path": "h", "size": 3, "system_prompt": None}}},
        verifier={"path": "j.py:judge"},
    )
    file.write_text(to_yaml(config))
    again = load_config(file)
    assert again == config
    assert to_yaml(again) == to_yaml(config)
    assert {key.split(".")[0] for key in all_keys()} == set(dataclasses.asdict(again))
