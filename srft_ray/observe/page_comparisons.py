"""Runs on a page that are compared with the first one, prompt by prompt."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srft_ray.observe import evaluation_ledger, stats


def averages_of(
    run_dir: Path,
    name: str,
    step: int,
) -> dict[int, float]:
    """The mean reward of each prompt."""
    table = evaluation_ledger.read(
        run_dir,
        name,
        step,
        ["prompt_id", "reward"],
    )
    prompts, where = np.unique(table["prompt_id"].to_numpy(), return_inverse=True)
    means = np.bincount(where, weights=table["reward"].to_numpy()) / np.bincount(where)
    return dict(zip(prompts.tolist(), means.tolist(), strict=True))


def comparisons(run_dirs: Sequence[Path]) -> list[dict[str, Any]]:
    """The model of the first run against that of each other run, on the prompts that both have evaluated."""
    found = [
        _comparison(run_dirs[0], other, name)
        for other in run_dirs[1:]
        for name in sorted(steps_of_model(run_dirs[0]).keys() & steps_of_model(other).keys())
    ]
    found = [one for one in found if one is not None]
    adjusted = stats.holm([one["p"] for one in found])
    return [{**one, "holm": p} for one, p in zip(found, adjusted, strict=True)]


def model_step(run_dir: Path) -> int | None:
    """The step whose checkpoint is the run's model; None for a run that is not finished."""
    summary = run_dir / "summary.json"
    return json.loads(summary.read_text()).get("model_step") if summary.exists() else None


def steps_of_model(run_dir: Path) -> dict[str, int]:
    """Of each set the step of its last evaluation, or of that of the run's model after early stopping."""
    tables = evaluation_ledger.tables(run_dir)  # sorted by step
    chosen = model_step(run_dir)
    return {name: chosen if (name, chosen) in tables else last for name, last in dict(tables).items()}


def paired_averages(first: Path, second: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What the models of two runs have on average, prompt by prompt, of the prompts that both have evaluated;
    each (P,). A prompt is known by its number and its text: built-in tasks have others for each seed."""
    was, now = _model_averages(first, name), _model_averages(second, name)
    common = sorted(was.keys() & now.keys())
    return np.array([was[prompt] for prompt in common]), np.array([now[prompt] for prompt in common])


def _model_averages(run_dir: Path, name: str) -> dict[tuple[int, str], float]:
    step = steps_of_model(run_dir)[name]
    table = evaluation_ledger.read(run_dir, name, step, ["prompt_id", "prompt"])
    texts = dict(zip(table["prompt_id"].to_pylist(), table["prompt"].to_pylist(), strict=True))
    return {(prompt, texts[prompt]): mean for prompt, mean in averages_of(run_dir, name, step).items()}


def _comparison(
    first: Path,
    second: Path,
    name: str,
) -> dict[str, Any] | None:
    """None if the runs have no prompt in common."""
    was, now = paired_averages(first, second, name)
    if len(was) == 0:
        return None
    paired = stats.paired(was, now)
    return {
        "first": first.name,
        "second": second.name,
        "set": name,
        "prompts": len(was),
        "mean": paired.mean,
        "low": paired.interval.low,
        "high": paired.interval.high,
        "p": paired.p,
        "better": int(((now > 0.5) & (was <= 0.5)).sum()),
        "worse": int(((was > 0.5) & (now <= 0.5)).sum()),
    }
