"""Bad input of every kind: exit code 2, one sentence on standard error, and not a file more than before."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithms import SRFT
from srft_ray.commands.cli import main
from srft_ray.config.algorithm import settings_of
from srft_ray.config.load import make_config, to_yaml
from srft_ray.config.schema import ModelSection
from srft_ray.data.tokenize import load_tokenizer
from srft_ray.errors import UserError
from srft_ray.run import installation
from tests.conftest import ROWS, base_config, make_tokenizer, write_jsonl

Change = Callable[
    [Path, Path], dict[str, dict[str, Any]]
]  # (folder, model) -> the config keys that differ from base_config


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is let through fails at once, not after minutes."""
    monkeypatch.setattr("srft_ray.run.cluster.start_ray", lambda *_: pytest.fail("Ray would be started"))


def write_config(tmp_path: Path, values: dict[str, Any]) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(values, ensure_ascii=False))  # which is YAML
    return path


def files(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def failure(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    config: Path | str,
    *overrides: str,
    command: str = "train",
) -> str:
    """The sentence that the command fails with, after checking everything that holds for all bad input."""
    before = files(tmp_path)
    capfd.readouterr()
    code = main([command, str(config), *overrides])
    out, err = capfd.readouterr()
    assert code == 2, (out, err)
    assert (
        err.startswith("srft-ray: ")
        and err.count("\n") == 1
        and err.endswith("\n")
        and "Traceback" not in err
    ), err
    assert files(tmp_path) == before
    return err.removeprefix("srft-ray: ").strip()


def copy_model(tiny_model: Path, folder: Path, without: str = "") -> Path:
    folder.mkdir()
    for file in tiny_model.iterdir():
        if not without or not file.match(without):
            shutil.copy(file, folder)
    return folder


# What is wrong in the config itself.


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        (
            "trainer.step=3",
            "Unknown config key 'trainer.step' in override 'trainer.step=3': did you mean 'trainer.steps'?",
        ),
        ("trainr.steps=3", "did you mean 'trainer'?"),
        ("trainer.steps=many", "Wrong value for 'trainer.steps' in override 'trainer.steps=many'"),
        ("trainer=3", "Wrong value for 'trainer' in override 'trainer=3'"),
        ("data.template='${x}'", "Wrong value for 'data.template'"),
        ("trainer.steps", "is not of the form key=value"),
        ("trainer.steps=0", "trainer.steps must be at least 1, not 0"),
        ("learner.num_workers=3", "trainer.groups_per_step=4 is not divisible by 3 learners"),
        ("learner.zero_stage=4", "learner.zero_stage is 4"),
        ("rollout.groups_per_task=3", "rollout.groups_per_task=3 must divide the 4 groups"),
        ("rollout.top_p=0.9", "rollout.top_p=0.9"),
        (
            "rollout.max_new_tokens=128",
            "rollout.max_new_tokens=128 leaves no room for a prompt in model.max_length=128",
        ),
        ("model.max_length=513", "model.max_length=513 is above the 512 positions of"),
        ("run.loggers=[wandbb]", "did you mean 'wandb'?"),
        ("verifier.name=maths", "there is no verifier 'maths', did you mean 'math'?"),
        (
            "algorithm=grpo",
            "Wrong value for 'algorithm' in override 'algorithm=grpo': it is a section; set its keys, "
            "such as algorithm.name=grpo.",
        ),
        ("algorithm.name=[a]", "algorithm.name must be a text, not ['a']."),
        ("algorithm.path=3", "algorithm.path must be a text, not 3."),
        ("algorithm.name=srf", "Unknown algorithm.name 'srf': did you mean 'srft'?"),
        (
            "algorithm.sft_scal=1",
            "Unknown config key 'algorithm.sft_scal' for srft: did you mean 'sft_scale'?",
        ),
        ("algorithm.sft_scale=big", "Wrong value for 'algorithm.sft_scale': 'big' is not of type float"),
        ("algorithm.entropy_granularity=word", "The settings of algorithm do not fit srft"),
        ("algorithm={name: two_stage, first: sft}", "Wrong value for 'algorithm.first': 'sft'"),
        (
            "algorithm={name: two_stage, first: {name: sfd}}",
            "Unknown algorithm.first.name 'sfd': did you mean 'sft'?",
        ),
        (
            "learner={offload_optimizer: true, zero_stage: 0}",
            "learner.offload_optimizer needs learner.zero_stage 1, 2 or 3",
        ),
        ("evaluation.data.held=d.jsonl", "evaluation.data.held must hold keys of the data section"),
        ("evaluation.data.held.pat=x", "Unknown config key 'evaluation.data.held.pat': did you mean 'path'?"),
        ("evaluation.data.held.size=x", "Wrong value for 'evaluation.data.held.size'"),
        (
            "evaluation.data.held.format=jsnl",
            "In evaluation.data.held: data.format is 'jsnl': did you mean 'jsonl'?",
        ),
        ("trainer.evaluate_every=1", "evaluation.data names no set"),
        ("learner.deepspeed.bf16={enabled: true}", "learner.deepspeed.bf16 cannot be set"),
        ("learner.deepspeed.zero_optimization=2", "learner.deepspeed.zero_optimization must be a mapping"),
        (
            "learner.deepspeed.zero_optimization={reduce_bucket_sise: 1000}",
            "reduce_bucket_sise cannot be set: did you mean 'reduce_bucket_size'?",
        ),
        (
            "learner.deepspeed.zero_optimization={reduce_bucket_size: large}",
            "is not what DeepSpeed takes: reduce_bucket_size Input should be a valid integer",
        ),
        ("rollout.engine.max_model_len=64", "rollout.engine.max_model_len cannot be set"),
        ("trainer.keep_best_mode=band", "keep_best_mode=band needs keep_best_band=[low, high], not []"),
        ("trainer.keep_best_band=[1,2]", "keep_best_band=[1.0, 2.0] needs trainer.keep_best_mode=band"),
        ("rollout.transport=nccl", "transport is 'nccl': choose object_store, collective or file.py:Class"),
        ("rollout.transport=nowhere.py:Mine", "nowhere.py does not exist"),
    ],
)
def test_bad_values(
    tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str], override: str, wanted: str
):
    assert wanted in failure(
        tmp_path, capfd, write_config(tmp_path, base_config(tmp_path, tiny_model)), override
    )


def test_evaluation_sets_are_checked_where_they_are_not_used(
    tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
):
    config = write_config(tmp_path, base_config(tmp_path, tiny_model, algorithm={"name": "sft"}))
    assert "Unknown config key 'evaluation.data.held.pat'" in failure(
        tmp_path, capfd, config, "evaluation.data.held.pat=x"
    )


def test_a_missing_config_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert f"Config file {tmp_path / 'no.yaml'} does not exist" in failure(
        tmp_path, capfd, tmp_path / "no.yaml"
    )


def test_a_config_file_that_is_no_yaml(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "config.yaml").write_text("a: [1\nb: 2\n")
    assert "is not valid YAML" in failure(tmp_path, capfd, tmp_path / "config.yaml")


# What is wrong on the disk or does not fit together. Each function makes it and returns the config keys.


def missing_model(folder: Path, model: Path) -> dict[str, dict[str, Any]]:
    return {"model": {"path": str(folder / "nowhere")}}


def no_model(folder: Path, model: Path) -> dict[str, dict[str, Any]]:
    (folder / "empty").mkdir()
    return {"model": {"path": str(folder / "empty")}}


def broken_model_config(folder: Path, model: Path) -> dict[str, dict[str, Any]]:
    (copy_model(model, folder / "m") / "config.json").write_text("{")
    return {"model": {"path": str(folder / "m")}}


def unknown_model_type(folder: Path, model: Path) -> dict[str, dict[str, Any]]:
    (copy_model(model, folder / "m") / "config.json").write_text('{"model_type": "nonesuch"}')
    return {"model": {"path": str(folder / "m")}}


def model_without(what: str) -> Change:
    def change(folder: Path, model: Path) -> dict[str, dict[str, Any]]:
        return {"model": {"path": str(copy_model(model, folder / "m", without=what))}}

    return change


def model_without_eos(folder: Path, model: Path) -> dict[str, dict[str, Any]]:
    make_tokenizer(eos=False).save_pretrained(copy_model(model, folder / "m", without="tokenizer*"))
    return {"model": {"path": str(folder / "m")}}


def data(content: str | list[Any], name: str = "bad.jsonl", **sections: dict[str, Any]) -> Change:
    """A data file, as text or as rows."""

    def change(folder: Path, model: Path) -> dict[str, dict[str, Any]]:
        if isinstance(content, str):
            (folder / name).write_text(content)
        else:
            write_jsonl(folder / name, content)
        return {**sections, "data": {"path": str(folder / name), **sections.get("data", {})}}

    return change


def evaluation_data(content: str, **keys: Any) -> Change:
    """Good training data, and an evaluation set from a file."""

    def change(folder: Path, model: Path) -> dict[str, dict[str, Any]]:
        (folder / "held.jsonl").write_text(content)
        held = {"path": str(folder / "held.jsonl"), **keys}
        return {
            "evaluation": {"data": {"held": held}},
            "trainer": {"evaluate_every": 1, "groups_per_step": 4},
        }

    return change


def python(section: str, name: str, content: str, **keys: Any) -> Change:
    """A user's own file, and `file.py:name` in the config."""

    def change(folder: Path, model: Path) -> dict[str, dict[str, Any]]:
        (folder / "own.py").write_text(content)
        return {section: {"path": f"{folder / 'own.py'}:{name}", **keys}}

    return change


def missing_python(section: str) -> Change:
    return lambda folder, model: {section: {"path": f"{folder / 'none.py'}:thing"}}


def path_is(name: str) -> Change:
    return lambda folder, model: {"data": {"path": str(folder / name)}}


def another_run(folder: Path, model: Path) -> dict[str, dict[str, Any]]:
    run = folder / "runs" / "run"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(make_config(base_config(folder, model, trainer={"steps": 1}))))
    return {}


def a_folder_of_something_else(folder: Path, model: Path) -> dict[str, dict[str, Any]]:
    (folder / "runs" / "run").mkdir(parents=True)
    (folder / "runs" / "run" / "thesis.tex").touch()
    return {}


def a_file_in_place_of(*parts: str) -> Change:
    def change(folder: Path, model: Path) -> dict[str, dict[str, Any]]:
        folder.joinpath(*parts).parent.mkdir(exist_ok=True)
        folder.joinpath(*parts).touch()
        return {}

    return change


LONG = [{"prompt": "p" * 200, "answer": "1", "demonstration": "d"}]
BARE = [{"prompt": "p", "answer": "1"}]
CASES: dict[str, tuple[Change, str]] = {
    "missing model": (missing_model, "model.path {tmp}/nowhere does not exist"),
    "directory that is no model": (
        no_model,
        "model.path {tmp}/empty is no model directory: it has no config.json",
    ),
    "config.json that is no JSON": (broken_model_config, "model.path {tmp}/m cannot be read as a model"),
    "unknown kind of model": (unknown_model_type, "model.path {tmp}/m cannot be read as a model"),
    "float16": (
        data(ROWS, model={"dtype": "float16"}),
        "model.dtype=float16 cannot be trained, because its gradients overflow: set bfloat16 or float32",
    ),
    "model without weights": (model_without("*.safetensors"), "no weights in safetensors format"),
    "a critic that nothing uses": (
        lambda folder, model: {"learner": {"critic": str(model)}},
        "learner.critic is set, but srft has no critic: remove it.",
    ),
    "model without tokenizer": (model_without("tokenizer*"), "The tokenizer of {tmp}/m has no vocabulary"),
    "tokenizer without eos": (
        model_without_eos,
        "The tokenizer of {tmp}/m has no eos token that the model knows",
    ),
    "a value for a section": (
        lambda folder, model: {"learner": {"lora": 16}},
        "it is a section; set its keys, such as learner.lora.rank=16.",
    ),
    "a value for a list": (
        lambda folder, model: {"run": {"loggers": "wandb"}},
        "it is a list; write 'run.loggers=[wandb]'.",
    ),
    "a cluster that does not answer": (
        lambda folder, model: {"cluster": {"address": "127.0.0.1:9"}},
        "No Ray cluster answers at 127.0.0.1:9 (cluster.address or RAY_ADDRESS): ",
    ),
    "missing data": (path_is("none.jsonl"), "data.path {tmp}/none.jsonl does not exist"),
    "data of unknown format": (data("x", "bad.csv"), "The format of data.path {tmp}/bad.csv cannot be told"),
    "empty data": (data(""), "data.path {tmp}/bad.jsonl is empty"),
    "a line that is no JSON": (
        data('{"prompt": "p", "answer": "1"}\n{"prompt": \n'),
        "{tmp}/bad.jsonl line 2 is not valid JSON",
    ),
    "a line that is no object": (data("[1]\n"), "{tmp}/bad.jsonl line 1 must be a JSON object"),
    "JSON that is none": (
        data('[{"prompt": "p"},\n{]', "bad.json"),
        "{tmp}/bad.json line 2 is not valid JSON",
    ),
    "Parquet that is none": (data("no", "bad.parquet"), "{tmp}/bad.parquet is not a readable Parquet file"),
    "no prompt field": (
        data([{"text": "p", "label": "1"}]),
        "in {tmp}/bad.jsonl line 1; fields found: label, text. Set data.prompt_field.",
    ),
    "no field of that name": (
        data(ROWS, data={"answer_field": "solution.final"}),
        "No answer field 'solution.final' in {tmp}/bad.jsonl line 1; "
        "fields found: answer, demonstration, prompt.",
    ),
    "no answers": (
        data([{"prompt": "p", "demonstration": "d"}, *ROWS]),
        "1 of 9 rows of {tmp}/bad.jsonl have no reference answer",
    ),
    "srft without demonstrations": (
        data(BARE),
        "No demonstrations: srft needs them and none of the 1 rows of {tmp}/bad.jsonl has one",
    ),
    "sft without demonstrations": (
        data(BARE, algorithm={"name": "sft"}),
        "No demonstrations: sft needs them and none of the 1 rows",
    ),
    "prompts that leave no room": (data(LONG), "All 1 rows were dropped: their prompts are above 96 tokens"),
    "a prompt that leaves no room": (
        data([*ROWS, *LONG], data={"overlong": "error"}),
        "Row 9 has a prompt of 201 tokens, above the limit of 96",
    ),
    "micro-batches below a rollout": (
        data(ROWS, learner={"micro_batch_tokens": 40}),
        "learner.micro_batch_tokens=40 is below the longest sequence of 47 tokens",
    ),
    "micro-batches below a demonstration": (
        data(ROWS, learner={"micro_batch_tokens": 30}, algorithm={"name": "sft"}),
        "learner.micro_batch_tokens=30 is below the longest sequence of 34 tokens",
    ),
    "chat without a template": (
        data(ROWS, data={"template": "chat"}),
        "data.template=chat, but the tokenizer has no chat template",
    ),
    "evaluation set that is missing": (
        lambda folder, model: {"evaluation": {"data": {"held": {"path": str(folder / "none.jsonl")}}}},
        "evaluation.data.held.path {tmp}/none.jsonl does not exist",
    ),
    "evaluation set that is called as the training data": (
        lambda folder, model: {"evaluation": {"data": {"train": {"split": "heldout"}}}},
        "evaluation.data.train: this name stands for the training data",
    ),
    "evaluation set whose name is a path": (
        lambda folder, model: {"evaluation": {"data": {"../held": {"split": "heldout"}}}},
        "evaluation.data.../held: the name becomes that of a folder",
    ),
    "evaluation set that is no JSON": (evaluation_data("{"), "{tmp}/held.jsonl line 1 is not valid JSON"),
    "evaluation set without the field": (
        evaluation_data('{"prompt": "p"}', answer_field="gold"),
        "No answer field 'gold' in {tmp}/held.jsonl line 1; fields found: prompt. "
        "Correct evaluation.data.held.answer_field or the row.",
    ),
    "another run in the directory": (
        another_run,
        "The run directory {tmp}/runs/run already holds a different run",
    ),
    "something else in the directory": (
        a_folder_of_something_else,
        "The run directory {tmp}/runs/run is not empty and holds no run",
    ),
    "a file in place of the run": (a_file_in_place_of("runs", "run"), "{tmp}/runs/run is not a directory"),
    "a file in place of the runs": (a_file_in_place_of("runs"), "{tmp}/runs is not a directory"),
    "no verifier file": (missing_python("verifier"), "none.py' is not a file"),
    "no verifier function": (python("verifier", "judge", "x = 1"), "own.py has no function 'judge'"),
    "verifier that takes one argument": (
        python("verifier", "judge", "def judge(response): return 1"),
        "must take (response, reference, metadata)",
    ),
    "verifier that cannot be imported": (
        python("verifier", "judge", "raise OSError('two\\nlines')"),
        "failed with OSError: two lines",
    ),
    "no algorithm file": (
        missing_python("algorithm"),
        "algorithm.path={tmp}/none.py:thing: file {tmp}/none.py does not exist",
    ),
    "no algorithm class": (
        python("algorithm", "Mine", "import torch"),
        "own.py has no 'Mine'; it defines torch",
    ),
    "algorithm that is none": (
        python("algorithm", "Mine", "class Mine: pass"),
        "is not a subclass of algorithms.Algorithm",
    ),
    "algorithm that cannot be imported": (
        python("algorithm", "Mine", "import nonesuch"),
        "own.py cannot be imported: ModuleNotFoundError",
    ),
    "field of an algorithm without settings": (
        python("algorithm", "Mine", "from algorithms import Algorithm\nclass Mine(Algorithm): pass", x=1),
        "Unknown config key 'algorithm.x' for Mine: it has no settings",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_surroundings(tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str], case: str):
    change, wanted = CASES[case]
    config = write_config(tmp_path, base_config(tmp_path, tiny_model, **change(tmp_path, tiny_model)))
    assert wanted.replace("{tmp}", str(tmp_path)) in failure(tmp_path, capfd, config)


def test_a_tokenizer_without_any_eos(tmp_path: Path):
    make_tokenizer(eos=False).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no eos token"):
        load_tokenizer(ModelSection(path=str(tmp_path)))


def test_cuda_that_is_asked_for_and_absent(
    tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = write_config(tmp_path, base_config(tmp_path, tiny_model))
    assert "run.device=cuda, but no CUDA GPU is visible" in failure(
        tmp_path, capfd, config, "run.device=cuda"
    )


@pytest.mark.parametrize("version", ["0.18.9", "0.9.5"])
def test_a_deepspeed_that_loses_gradients(
    tmp_path: Path,
    tiny_model: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    version: str,
):
    monkeypatch.setattr(installation, "version", lambda package: {"deepspeed": version}[package])
    text = failure(tmp_path, capfd, write_config(tmp_path, base_config(tmp_path, tiny_model)))
    wanted = "loses gradients with ZeRO-1/2 and optimizer offload: install deepspeed>=0.19."
    assert text == f"DeepSpeed {version} {wanted}"


@pytest.mark.parametrize("installed", ["0.19.0", "0.20", "1.0.1+cpu"])
def test_a_deepspeed_that_does_not(installed: str):
    installation.check_deepspeed(installed)


def test_bad_input_removes_only_what_it_prepared(
    tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]
):
    config = write_config(tmp_path, base_config(tmp_path, tiny_model))
    assert main(["plan", str(config)]) == 0
    prepared = files(tmp_path / "runs" / ".data")
    assert len(prepared) == 2
    failure(tmp_path, capfd, config, "learner.micro_batch_tokens=40")
    failure(tmp_path, capfd, config, "learner.micro_batch_tokens=40", "model.max_length=120")
    assert files(tmp_path / "runs" / ".data") == prepared


@pytest.mark.parametrize("command", ["plan", "data"])
@pytest.mark.parametrize(
    "override", ["trainer.step=1", "data.path=none.jsonl", "model.path=./none", "algorithm.name=srf"]
)
def test_plan_and_data_refuse_what_train_refuses(
    tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str], command: str, override: str
):
    failure(
        tmp_path, capfd, write_config(tmp_path, base_config(tmp_path, tiny_model)), override, command=command
    )


@pytest.mark.parametrize(
    ("model", "source", "wanted"),
    [
        ("none/at/all", "data.jsonl", "model.path none/at/all does not exist"),
        ("", "none.jsonl", "none.jsonl does not exist"),
        ("", "bad.jsonl", "bad.jsonl line 1 is not valid JSON"),
    ],
)
def test_evaluate_refuses_bad_input_too(
    tmp_path: Path,
    tiny_model: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    source: str,
    wanted: str,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("srft_ray.run.cluster.start_ray", lambda *_: pytest.fail("Ray would be started"))
    write_jsonl(tmp_path / "data.jsonl", ROWS)
    (tmp_path / "bad.jsonl").write_text("{")
    limits = ("--max-length", "128", "--max-new-tokens", "32")
    assert wanted in failure(
        tmp_path, capfd, model or str(tiny_model), "--data", source, *limits, command="evaluate"
    )


def test_plan_of_a_good_config(
    tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    values = base_config(
        tmp_path,
        tiny_model,
        run={"name": "run", "dir": "runs", "device": "cpu"},
        trainer={"steps": 3, "groups_per_step": 4},
        learner={"num_workers": 2, "micro_batch_tokens": 512},
        evaluation={"data": {"held": {"path": "data.jsonl"}}},
    )
    assert main(["plan", str(write_config(tmp_path, values)), "rollout.num_engines=2"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    shown, said = out.split("\n\n", 1)
    resolved = make_config(
        {
            **values,
            "rollout": {**values["rollout"], "num_engines": 2},
            "verifier": {"name": "math"},
            "run": {**values["run"], "dir": str(tmp_path / "runs")},
            "algorithm": settings_of(SRFT(), {}),
        }
    )
    assert shown + "\n" == to_yaml(resolved)
    assert "2 learners and 2 engines, together 6 CPUs on cpu" in said
    assert "8 rows: 3 steps with 12 prompts are 1.50 epochs" in said
    assert "8 rollouts of at most 32 tokens (256 generated), at most 4 demonstrations" in said
    parameters = 259 * 64 + 2 * (2 * 64 * 64 + 64 + 2 * (64 * 32 + 32) + 3 * 64 * 96 + 2 * 64) + 64
    assert f"{parameters / 1e6:,.1f} M parameters" in said
    assert not (tmp_path / "runs" / "run").exists()


def test_data_of_a_good_config(tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]):
    rows = [
        *ROWS,
        {"prompt": "p", "answer": "4", "demonstration": "#### 5"},
        {"prompt": "p" * 96, "answer": "1"},
    ]
    write_jsonl(tmp_path / "data.jsonl", rows)
    (tmp_path / "own.py").write_text(
        "def judge(response, reference): return response.endswith('#### ' + reference)"
    )
    values = base_config(tmp_path, tiny_model, verifier={"path": f"{tmp_path / 'own.py'}:judge"})
    config = write_config(tmp_path, values)
    before = files(tmp_path)
    assert main(["data", str(config)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].endswith(f" {tmp_path / 'data.jsonl'} (10 rows)")
    assert lines[1].endswith(" 9 rows with 9 demonstrations")
    assert "1 prompts above 96 tokens" in lines[2]
    assert "longest 15" in lines[4] and "longest with its prompt 34" in lines[5]
    assert "own.py:judge accepts 8 of 9 demonstrations (88.89 %); 1 mismatch" in lines[6]
    assert "mismatch: reference '4', found None, in …'#### 5'" in lines[7]
    assert files(tmp_path) == before
