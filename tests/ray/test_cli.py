"""The command line as a user types it: every command is a process with a Ray of its own.

What starts no Ray is called in the process of the test.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from srft_ray.commands.cli import main
from tests.conftest import ROWS, base_config, write_jsonl
from tests.ray.conftest import Run
from tests.ray.faults import ROOT, SMALL, processes
from tests.ray.test_comparable import check_same_data, prompts


def write_config(tmp_path, tiny_model, **sections):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(base_config(tmp_path, tiny_model, **sections)))
    return path


def start(*words, **options):
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "srft_ray", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=options.pop("cwd", ROOT),
        **options,
    )


def finish(process, timeout=600):
    out, error = process.communicate(timeout=timeout)
    return process.returncode, out, error


def loads_vllm(pid):
    try:
        return "/vllm/" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def test_train_prints_plain_lines_and_evaluate_reads_its_model(tmp_path, tiny_model):
    config = write_config(tmp_path, tiny_model)
    code, out, error = finish(start("train", config, "trainer.steps=2"))
    assert code == 0, error
    assert "step 1/2  reward" in out and "step 2/2  reward" in out and "ETA" in out
    run = Run(tmp_path / "runs/run")
    run.check_exactly_once(steps=2, groups_per_step=4)
    summary = json.loads((run.dir / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["final"] == run.metrics[-1]
    assert all(
        (run.dir / "plots" / f"{name}.png").stat().st_size > 1000
        for name in ("reward", "entropy", "weights", "loss", "length", "overview")
    )
    code, out, error = finish(
        start(
            "evaluate",
            summary["model"],
            "--data",
            tmp_path / "data.jsonl",
            "--samples",
            2,
            "--max-new-tokens",
            16,
            f"run.dir={tmp_path / 'runs'}",
        )
    )
    assert code == 0, error
    assert "avg@2" in out and "pass@2" in out and "(8 prompts)" in out
    assert f"as in {run.dir / 'config.yaml'}: model.max_length=128" in out.splitlines(), (
        "a shorter one was given"
    )


def test_sft_never_starts_an_engine(tmp_path, tiny_model, monkeypatch):
    config = write_config(tmp_path, tiny_model)
    monkeypatch.setenv("SRFT_TEST", str(tmp_path))
    process = start("train", config, "algorithm.name=sft", "trainer.steps=3")
    family, engines = set(), set()
    while process.poll() is None:
        family |= (now := set(processes(f"SRFT_TEST={tmp_path}")))
        engines |= {pid for pid in now if loads_vllm(pid)}
        time.sleep(0.5)
    code, _, error = finish(process)
    assert code == 0, error
    assert len(family) > 3 and not engines
    run = Run(tmp_path / "runs/run")
    run.check_exactly_once(steps=3, groups_per_step=4)
    assert not run.rollouts and all(row["verdict"] == "given" for row in run.ledger)


@pytest.mark.full
def test_interrupt_leaves_no_process_and_the_same_command_continues(tmp_path, tiny_model, monkeypatch):
    config = write_config(tmp_path, tiny_model, trainer={"steps": 12, "checkpoint_every": 2})
    monkeypatch.setenv("SRFT_TEST", str(tmp_path))
    process = start("train", config)
    metrics = tmp_path / "runs/run/metrics.jsonl"
    deadline = time.time() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 5):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.05)
    assert processes(f"SRFT_TEST={tmp_path}")
    process.send_signal(signal.SIGINT)
    code, _, error = finish(process, timeout=60)
    assert code == 130 and "interrupted" in error and "Traceback" not in error
    deadline = time.time() + 20
    while left := processes(f"SRFT_TEST={tmp_path}"):
        assert time.time() < deadline, f"processes left: {left}"
        time.sleep(0.2)
    done = Run(tmp_path / "runs/run")
    assert 5 <= len(done.metrics) < 12 and (done.dir / "checkpoints/step-4/hf/model.safetensors").exists()
    code, out, error = finish(start("train", config))
    assert code == 0, error
    assert "continuing after step" in out
    Run(tmp_path / "runs/run").check_exactly_once(steps=12, groups_per_step=4)


def test_what_can_never_be_placed_is_refused(tmp_path, tiny_model):
    config = write_config(
        tmp_path, tiny_model, cluster={"num_cpus": 4}, rollout={"num_engines": 9}, learner={"num_workers": 2}
    )
    code, _, error = finish(start("train", config))
    assert code == 2 and "9 engines" in error and "4 CPUs" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "runs/run").exists()


@pytest.mark.full
def test_gsm8k_example(tmp_path):
    """The example on rows of GSM8K's format, two learners and two engines, from another directory."""
    rows = [
        {"question": row["prompt"], "answer": row["demonstration"].replace("= ", "= <<1+1=2>>")}
        for row in ROWS
    ]
    data = write_jsonl(tmp_path / "train.jsonl", rows)
    words = (
        ROOT / "examples/gsm8k.yaml",
        f"data.path={data}",
        f"model.path={ROOT / 'examples/tiny/base'}",
        f"run.dir={tmp_path}",
    )
    code, out, error = finish(start("data", *words, cwd=tmp_path))
    assert code == 0 and "accepts 8 of 8 demonstrations (100.00 %)" in out, error
    code, _, error = finish(
        start(
            "train", *words, "trainer.steps=2", "learner.num_workers=2", "rollout.num_engines=2", cwd=tmp_path
        )
    )
    assert code == 0, error
    run = Run(tmp_path / "gsm8k")
    run.check_exactly_once(steps=2, groups_per_step=8)
    assert not any("<<" in row["response"] for row in run.ledger if row["origin"] == "demo")


@pytest.mark.parametrize(
    "example", ["qwen2.5-math-7b.yaml", "sft_then_rl-qwen2.5-math-7b.yaml", "quickstart.yaml"]
)
def test_plan_of_the_examples(example, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    code = main(["plan", f"examples/{example}", f"run.dir={tmp_path}"])
    out, error = capsys.readouterr()
    assert code == 0, error
    assert "placement" in out and "per step" in out and "memory" in out
    if example.startswith("qwen"):
        assert "32 learners and 32 engines" in out and "64 GPUs" in out and "7,615.6 M parameters" in out


@pytest.mark.full
def test_python_api_example():
    done = subprocess.run(
        [sys.executable, ROOT / "examples/python_api.py", "2"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "trained 2 steps" in done.stdout


def test_everything_in_one_file_example():
    """An algorithm, a verifier as a lambda, and a callback."""
    example = ROOT / "examples/everything_in_one_file.py"
    assert len(example.read_text().splitlines()) <= 40
    done = subprocess.run([sys.executable, example, "2"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "reward of step 0: " in done.stdout and "reward of step 1: " in done.stdout


@pytest.mark.full
def test_custom_algorithm_example():
    done = subprocess.run(
        [sys.executable, ROOT / "examples/custom_algorithm.py"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and "loss" in done.stdout, done.stderr


def test_compare_prints_a_table_and_repeats_nothing(tmp_path):
    words = (
        "compare",
        ROOT / "examples/quickstart.yaml",
        "--algorithms",
        "sft,srft",
        "--seeds",
        "4",
        "--parallel",
        "2",
        f"run.dir={tmp_path}",
        "trainer.steps=2",
        *SMALL,
    )
    began = time.monotonic()
    code, out, error = finish(start(*words))
    trained_s = time.monotonic() - began
    assert code == 0, error
    printed = re.findall(r"^(s\w+)-seed4 \| (?=step [12]/2)", out, re.MULTILINE)
    assert Counter(printed) == {"sft": 2, "srft": 2}, out
    table = [line.split("|")[1:-1] for line in out.splitlines() if line.startswith("|")]
    at_equal_steps, at_equal_operations = table[:5], table[5:]
    names = [row[0].strip() for row in at_equal_steps]
    assert names == ["algorithm (1 seed)", "---", "(before)", "sft", "srft"]
    assert [row[1].strip() for row in at_equal_operations[2:]] == ["sft", "srft"]
    figures = json.loads((tmp_path / "quickstart-compare/compare.json").read_text())
    assert [row["algorithm"] for row in figures] == ["(before)", "(before)", "sft", "srft"]
    assert figures[0]["figures"] == figures[1]["figures"], "before training both are the same model"
    assert figures[2]["figures"]["tokens generated"] == 0 < figures[3]["figures"]["tokens generated"]
    accuracy = figures[2]["figures"]["heldout avg@2, %"]
    assert float(table[3][1].split()[0]) == pytest.approx(accuracy, abs=0.05), "rounded to a decimal or more"
    sft, srft = (Run(tmp_path / "quickstart-compare" / f"{name}-seed4") for name in ("sft", "srft"))
    check_same_data(sft, srft)
    assert prompts(sft) == prompts(srft) and not sft.rollouts
    assert {row["response"] for row in sft.ledger} == {
        row["response"] for row in srft.ledger if row["origin"] == "demo"
    }
    began = time.monotonic()
    code, again, error = finish(start(*words))
    shown, expected = ([line for line in text.splitlines() if line.startswith("|")] for text in (again, out))
    assert code == 0 and shown == expected and time.monotonic() - began < trained_s / 2, error


def test_compare_refuses_what_it_cannot_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words, wanted in (
        (("--algorithms", "sft,grp"), "did you mean 'grpo'?"),
        (("--seeds", "1,x"), "--seeds 1,x are not whole numbers"),
        (("--algorithms", "sft", "model.path=./none"), "model.path"),
    ):
        code = main(["compare", "examples/quickstart.yaml", f"run.dir={tmp_path}", *words])
        error = capsys.readouterr().err
        assert code == 2 and wanted in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())
