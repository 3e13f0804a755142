"""Gradients of single terms, against autograd on a plain model."""

import math
from pathlib import Path

import pytest
import torch
import yaml

from algorithms import Completion, Group
from srft_ray.commands.analysis import gradients, scoring
from srft_ray.commands.analysis.study import Settings, markdown, study
from srft_ray.config.load import make_config
from srft_ray.observe import ledger
from tests.conftest import base_config

STEPS = 2


def completions(number: int) -> list[Completion]:
    demo = Completion(0, "demo", "d", [5, 6, 7 + number], advantage=0.5)
    right = Completion(1, "rollout", "r", [8, 9], [-1.0, -2.0], 0, reward=1.0, advantage=0.5)
    wrong = Completion(2, "rollout", "w", [9, 8, 7, 6], [-1.0] * 4, 0, reward=0.0, advantage=-1.0)
    return [demo, right, wrong]


@pytest.fixture
def run_dir(tmp_path: Path, tiny_model: Path) -> Path:
    """A run with a ledger of two steps of three groups, and the tiny model as its only checkpoint."""
    folder = tmp_path / "run"
    (folder / "groups").mkdir(parents=True)
    for step in range(STEPS):
        groups = [
            Group(step, 3 * step + number, "p", [1, 2 + number], "r", {}, completions(number))
            for number in range(3)
        ]
        ledger.write(folder, step, 0, groups)
    return folder


def rows(
    run_dir: Path, tmp_path: Path, model: Path, algorithm: dict, checkpoints: tuple[int, ...] = (0, STEPS)
) -> list[dict]:
    values = base_config(tmp_path, model, algorithm=algorithm, trainer={"steps": STEPS})
    return gradients.term_gradients(run_dir, make_config(values), dict.fromkeys(checkpoints, model), 8)


def test_the_gradient_of_sft_is_that_of_a_plain_mean(run_dir: Path, tmp_path: Path, tiny_model: Path):
    found = rows(run_dir, tmp_path, tiny_model, {"name": "sft"})
    assert [(row["checkpoint"], row["step"], row["term"]) for row in found] == [
        (0, 0, "sft_demo"),
        (0, 0, "all terms"),
        (STEPS, STEPS - 1, "sft_demo"),
        (STEPS, STEPS - 1, "all terms"),
    ], "no step follows the last checkpoint: its batch is that of the last step"
    model = scoring.load(tiny_model)
    logprobs = []
    for number in range(3):
        ids = [1, 2 + number, 5, 6, 7 + number]
        log_TV = model(torch.tensor([ids])).logits[0].float().log_softmax(dim=-1)
        logprobs += [log_TV[place - 1, ids[place]] for place in (2, 3, 4)]
    loss = -torch.stack(logprobs).mean()
    loss.backward()
    norm = math.sqrt(sum(float(one.grad.square().sum()) for one in model.parameters()))
    assert found[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert found[0]["norm"] == pytest.approx(norm, rel=1e-4)
    assert found[0]["cosine with all terms"] == pytest.approx(1.0, abs=1e-5)


def test_the_terms_add_up_and_their_cut_does_not_matter(
    run_dir: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = rows(run_dir, tmp_path, tiny_model, {"name": "srft"}, (0,))
    monkeypatch.setattr(gradients, "BATCH_TOKENS", 1)
    parts = rows(run_dir, tmp_path, tiny_model, {"name": "srft"}, (0,))
    names = [row["term"] for row in whole]
    assert names == ["sft_demo", "rl_demo", "rl_positive", "rl_negative", "all terms"]
    for one, other in zip(whole, parts, strict=True):
        assert one["norm"] == pytest.approx(other["norm"], rel=1e-3)
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-6)
    # |Σ g|² = Σ Σ |g| |h| cos(g, h)
    terms = whole[:4]
    square = sum(
        one["norm"] * other["norm"] * one[f"cosine with {other['term']}"] for one in terms for other in terms
    )
    assert whole[4]["norm"] ** 2 == pytest.approx(square, rel=1e-3)
    assert whole[4]["loss"] == pytest.approx(sum(row["loss"] for row in terms))


@pytest.mark.parametrize(
    "algorithm", [{"name": "ibro"}, {"name": "sft_kl"}, {"name": "dpo"}, {"name": "grpo"}]
)
def test_what_terms_need_is_given_or_they_are_left_out(
    algorithm: dict, run_dir: Path, tmp_path: Path, tiny_model: Path
):
    values = base_config(tmp_path, tiny_model, algorithm=algorithm, trainer={"steps": STEPS})
    made = gradients.make_algorithm(make_config(values).algorithm)
    found = rows(run_dir, tmp_path, tiny_model, algorithm)
    assert bool(found) == (made.needs <= gradients.SUPPORTED)
    assert all(math.isfinite(row["norm"]) for row in found)


def test_a_gradient_of_zero_has_no_direction():
    found = gradients.compared({"a": 0.0, "b": 1.0}, {"a": torch.zeros(2), "b": torch.tensor([3.0, 4.0])})
    assert [row["norm"] for row in found] == [0.0, 5.0, 5.0]
    assert found[0]["cosine with b"] is None and found[1]["cosine with all terms"] == 1.0


def test_a_study_has_the_table_and_the_plot(run_dir: Path, tmp_path: Path, tiny_model: Path):
    values = base_config(tmp_path, tiny_model, algorithm={"name": "srft"}, trainer={"steps": STEPS})
    (run_dir / "config.yaml").write_text(yaml.safe_dump(values))
    (run_dir / "metrics.jsonl").touch()
    (run_dir / "evaluations.jsonl").touch()
    (run_dir / "checkpoints" / f"step-{STEPS}").mkdir(parents=True)
    (run_dir / "checkpoints" / f"step-{STEPS}" / "hf").symlink_to(tiny_model)
    page = study(run_dir, Settings(texts=4))
    assert "Gradients of the terms" in page.read_text()
    assert (page.parent / "gradients.parquet").is_file() and (page.parent / "gradients.png").is_file()
    assert "Gradients" not in markdown("run", {"gradients": []})
