"""Evaluations as logs of Inspect AI, version 2 of its JSON format (inspect-ai 0.3.285)."""

from collections.abc import Mapping
from typing import Any

import srft_ray
from srft_ray.commands.exports.evaluations import StoredEvaluation
from srft_ray.observe.evaluation import CORRECT_ABOVE

FORMAT_VERSION = 2
STOP_REASONS = {"stop": "stop", "length": "max_tokens"}
METRICS = ("avg", "pass", "maj")
SCORER = "verifier"


def inspect_log(evaluation: StoredEvaluation) -> dict[str, Any]:
    """The log of one evaluation: prompts are samples, and samples of a prompt are epochs.

    Scores are rewards; log-probs and token ids are not part of it. `inspect view` shows it.
    """
    rows = evaluation.table.to_pylist()
    prompts = evaluation.figures["prompts"]
    epochs = evaluation.figures["samples"]
    when = evaluation.written_at.isoformat()
    return {
        "version": FORMAT_VERSION,
        "status": "success",
        "eval": _specification(evaluation, prompts, epochs),
        "plan": {"name": "plan", "steps": [], "config": _sampling(evaluation)},
        "results": {
            "total_samples": len(rows),
            "completed_samples": len(rows),
            "scores": [_score(evaluation)],
        },
        "stats": {"started_at": when, "completed_at": when, "model_usage": {}},
        "samples": [_sample(row, evaluation.model) for row in rows],
    }


def _specification(
    evaluation: StoredEvaluation,
    prompts: int,
    epochs: int,
) -> dict[str, Any]:
    name = evaluation.name
    ids = list(dict.fromkeys(evaluation.table["prompt_id"].to_pylist()))
    return {
        "eval_id": f"{evaluation.model}/{evaluation.file_stem}",
        "run_id": evaluation.model,
        "created": evaluation.written_at.isoformat(),
        "task": name,
        "task_id": name,
        "dataset": {"name": name, "location": evaluation.section.path, "samples": prompts, "sample_ids": ids},
        "model": evaluation.model,
        "model_generate_config": _sampling(evaluation),
        "config": {"epochs": epochs, "epochs_reducer": ["mean"]},
        "packages": {"srft_ray": srft_ray.__version__},
        "metadata": {"verifier": evaluation.verifier, "step": evaluation.step},
    }


def _sampling(evaluation: StoredEvaluation) -> dict[str, Any]:
    section = evaluation.section
    return {
        "temperature": section.temperature,
        "top_p": section.top_p,
        "max_tokens": section.max_new_tokens,
        "seed": evaluation.config.run.seed,
    }


def _score(evaluation: StoredEvaluation) -> dict[str, Any]:
    """The figures as shares, with the interval over prompts where there is one."""
    figures = evaluation.figures
    samples = figures["samples"]
    metrics = {}
    for key in METRICS:
        name = f"{key}@{samples}"
        metrics[name] = {"name": name, "value": figures[key] / 100}
    for end in ("low", "high"):
        if f"avg_{end}" in figures and figures[f"avg_{end}"] == figures[f"avg_{end}"]:
            name = f"avg@{samples}_{end}"
            metrics[name] = {"name": name, "value": figures[f"avg_{end}"] / 100}
    return {"name": SCORER, "scorer": SCORER, "metrics": metrics}


def _sample(row: Mapping[str, Any], model: str) -> dict[str, Any]:
    """One response."""
    response = row["response"]
    read = len(row["prompt_ids"])
    written = len(row["response_ids"])
    usage = {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}
    stop_reason = STOP_REASONS.get(row["finish_reason"], "unknown")
    message = {"role": "assistant", "content": response, "source": "generate", "model": model}
    return {
        "id": row["prompt_id"],
        "epoch": row["sample"] + 1,
        "input": row["prompt"],
        "target": row["reference"],
        "messages": [{"role": "user", "content": row["prompt"]}, message],
        "output": {
            "model": model,
            "choices": [{"message": message, "stop_reason": stop_reason}],
            "completion": response,
            "usage": usage,
        },
        "scores": {SCORER: _sample_score(row)},
        "metadata": {"seed": row["seed"], "policy_version": row["policy_version"]},
        "model_usage": {model: usage},
        "total_time": row["seconds"],
    }


def _sample_score(row: Mapping[str, Any]) -> dict[str, Any]:
    is_correct = row["reward"] > CORRECT_ABOVE
    return {
        "value": row["reward"],
        "answer": row["answer"],
        "explanation": row["reason"],
        "metadata": {"verdict": row["verdict"], "correct": is_correct},
    }
