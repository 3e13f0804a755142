"""The command line where no run is started: help texts, exit codes, and where overrides may stand."""

import argparse
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from srft_ray.commands import cli, scale_cli
from srft_ray.commands.arguments import EVALUATION_OPTIONS, evaluation_config
from srft_ray.commands.run_settings import unused
from srft_ray.config.schema import Config
from srft_ray.errors import RunFailed, UserError

PARSERS: dict[str, argparse.ArgumentParser] = next(
    action.choices for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction)
)
COMMANDS = tuple(PARSERS)


def options_of(command: str) -> list[argparse.Action]:
    return [action for action in PARSERS[command]._actions if action.dest != "help"]


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)])
def test_help_is_shown(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and "usage: srft-ray" in out and "%%" not in out
    if not words:
        assert all(f"\n    {name}" in out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_has_a_help_text_and_every_option_a_default(command: str):
    for action in options_of(command):
        assert action.help, action.dest
        if action.option_strings:
            assert "(default" in action.help or "(required)" in action.help, action.option_strings


def test_stated_defaults_of_evaluate_are_those_of_the_config():
    options = cli.parser().parse_args(["evaluate", "m", "--data", "d"])
    config = evaluation_config(options)
    for key, kind, text in EVALUATION_OPTIONS.values():
        section, _, leaf = key.partition(".")
        stated = text.rpartition("(default ")[2].rstrip(")")
        value = getattr(getattr(config, section), leaf)
        if key != "data.path" and value is not None:
            assert kind(stated) == value, key
    assert config.evaluation.max_prompts is None and config.data.size == 256


@pytest.fixture
def model_of_run(tmp_path: Path) -> Path:
    """Where a run with settings of its own would have left its model."""
    model = tmp_path / "runs/mine/checkpoints/step-8/hf"
    model.mkdir(parents=True)
    values = {
        "model": {"path": "base", "max_length": 4096, "trust_remote_code": True},
        "data": {"path": "train.jsonl", "template": "Q: {prompt}", "size": 7},
        "rollout": {"max_new_tokens": 1024, "temperature": 0.7, "max_turns": 8, "stop": ["= "]},
        "verifier": {"name": "tasks", "path": "judge.py:judge"},
    }
    (tmp_path / "runs/mine/config.yaml").write_text(yaml.safe_dump(values))
    return model


def evaluation_of(model: Path, *words: str) -> Config:
    return evaluation_config(cli._parse(cli.parser(), ["evaluate", str(model), "--data", "d", *words]))


def test_a_model_is_evaluated_with_the_settings_of_its_run(
    model_of_run: Path, capsys: pytest.CaptureFixture[str]
):
    config = evaluation_of(model_of_run, "--max-new-tokens", "64", "data.system_prompt=Be brief.")
    assert (config.model.max_length, config.rollout.max_new_tokens) == (4096, 64)
    assert (config.data.template, config.data.system_prompt) == ("Q: {prompt}", "Be brief.")
    assert (config.rollout.stop, config.verifier.path) == (["= "], "judge.py:judge")
    assert not config.model.trust_remote_code and config.evaluation.temperature == 1.0
    assert config.data.size == 256
    record = model_of_run.parents[2] / "config.yaml"
    assert capsys.readouterr().out == (
        f"as in {record}: model.max_length=4096, data.template=Q: {{prompt}}, rollout.stop=['= '], "
        "verifier.path=judge.py:judge\n"
    )
    assert evaluation_of(model_of_run, "verifier.name=math").verifier.path is None
    moved = model_of_run.rename(model_of_run.parents[3] / "moved")
    assert evaluation_of(moved).model.max_length == 2048


def test_a_benchmark_says_what_it_does_not_take_from_the_run(model_of_run: Path, tmp_path: Path):
    words = unused(str(model_of_run), {"rollout.max_turns"}).partition(": add ")[2].partition(" to ask ")[0]
    assert shlex.split(words) == ["data.template=Q: {prompt}", "rollout.stop=['= ']"]
    assert unused(str(tmp_path), set()) == ""


def test_a_verifier_from_python_cannot_be_taken_from_a_run(model_of_run: Path):
    record = model_of_run.parents[2] / "config.yaml"
    record.write_text("verifier: {name: 'python:mine.judge'}")
    with pytest.raises(UserError, match=r"python:mine\.judge, a function that was given from Python"):
        evaluation_of(model_of_run)
    assert evaluation_of(model_of_run, "verifier.name=tasks").verifier.name == "tasks"
    record.write_text("verifier: {name: code}")
    assert evaluation_of(model_of_run).verifier.name == "code"
    record.write_text("a: [")
    with pytest.raises(UserError, match="cannot be read"):
        evaluation_of(model_of_run)


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (UserError("bad\n  config"), 2, "srft-ray: bad config\n"),
        (RunFailed("the engines are gone"), 1, "srft-ray: run failed: the engines are gone\n"),
        (
            OSError("disk full"),
            1,
            "srft-ray: run failed: the operating system reported an error: disk full\n",
        ),
        (
            KeyboardInterrupt(),
            130,
            "srft-ray: interrupted: the same command goes on from the newest checkpoint",
        ),
    ],
)
def test_exit_codes(
    raised: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def command(options: Any) -> int:
        raise raised

    monkeypatch.setattr(cli, "train", command)
    assert cli.main(["train", "config.yaml"]) == code
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


def test_overrides_may_stand_before_and_after_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []

    def command(options: argparse.Namespace) -> int:
        seen.append((options.config, options.steps, sorted(options.overrides)))
        return 0

    monkeypatch.setattr(scale_cli, "scale", command)
    assert cli.main(["scale", "c.yaml", "a.b=1", "--steps", "9", "c.d=2"]) == 0
    assert seen == [("c.yaml", 9, ["a.b=1", "c.d=2"])]
    for words in (["scale", "c.yaml", "--stepz", "9"], ["scale", "c.yaml", "--steps", "9", "word"], []):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 2
