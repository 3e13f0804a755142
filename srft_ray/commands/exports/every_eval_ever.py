"""Evaluations in the schema of Every Eval Ever, version 0.3.0."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import srft_ray
from srft_ray.commands.exports.evaluations import StoredEvaluation
from srft_ray.observe.evaluation import CORRECT_ABOVE, UNJUDGED
from srft_ray.observe.intervals import LEVEL

SCHEMA_VERSION = "0.3.0"
# Of a figure: whether its interval is known, and its description.
METRICS = {
    "avg": (True, "mean reward of the samples of a prompt, and over prompts"),
    "pass": (True, "share of prompts with a right answer among the samples"),
    "maj": (False, "share of prompts whose most frequent answer is right"),
}


def file_of(evaluation: StoredEvaluation) -> Path:
    """Where the schema wants the aggregate file: `data/<benchmark>/<developer>/<model>/<uuid>.json`.

    The UUID is made of the evaluation's id, so that a repeated export writes the same file.
    """
    benchmark = evaluation.file_stem
    developer, _, model = evaluation.model.partition("/")
    digest = hashlib.sha256(evaluation_id(evaluation).encode()).digest()
    name = UUID(bytes=digest[:16], version=4)
    return Path("data") / benchmark / developer / model / f"{name}.json"


def instances_file_of(evaluation: StoredEvaluation) -> Path:
    """Where the schema wants the file with one line for each response."""
    aggregate_file = file_of(evaluation)
    return aggregate_file.with_name(f"{aggregate_file.stem}_samples.jsonl")


def aggregate(evaluation: StoredEvaluation, instances: Sequence[str]) -> dict[str, Any]:
    """The object of the schema eval.schema.json.

    Args:
        instances: the lines of the instance-level file.
    """
    seconds = str(evaluation.written_at.timestamp())
    checksum = hashlib.sha256("".join(instances).encode()).hexdigest()
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": evaluation_id(evaluation),
        "evaluation_timestamp": seconds,
        "retrieved_timestamp": seconds,
        "source_metadata": {
            "source_name": "srft_ray",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
        },
        "eval_library": {"name": "srft_ray", "version": srft_ray.__version__},
        "model_info": _model(evaluation),
        "evaluation_results": [_result(evaluation, key) for key in METRICS],
        "detailed_evaluation_results": {
            "format": "jsonl",
            "file_path": instances_file_of(evaluation).as_posix(),
            "hash_algorithm": "sha256",
            "checksum": checksum,
            "total_rows": len(instances),
        },
    }


def evaluation_id(evaluation: StoredEvaluation) -> str:
    return f"{evaluation.name}/{evaluation.model}/{evaluation.written_at.timestamp()}"


def _model(evaluation: StoredEvaluation) -> dict[str, Any]:
    return {
        "name": evaluation.model,
        "id": evaluation.model,
        "inference_engine": {"name": "vllm"},
        "additional_details": {
            "deployment_type": "self_deployed",
            "model_availability": "unknown",
            "path": evaluation.config.model.path,
        },
    }


def _result(evaluation: StoredEvaluation, key: str) -> dict[str, Any]:
    """One figure, as a share."""
    figures = evaluation.figures
    samples = figures["samples"]
    has_interval, description = METRICS[key]
    uncertainty: dict[str, Any] = {"num_samples": figures["prompts"]}
    if has_interval and math.isfinite(figures[f"{key}_low"]):
        uncertainty["confidence_interval"] = {
            "lower": figures[f"{key}_low"] / 100,
            "upper": figures[f"{key}_high"] / 100,
            "confidence_level": LEVEL,
            "method": "over prompts; Wilson for shares, else studentized bootstrap",
        }
    return {
        "evaluation_result_id": f"{evaluation_id(evaluation)}/{key}",
        "evaluation_name": evaluation.name,
        "source_data": {"dataset_name": evaluation.name, "source_type": "other"},
        "metric_config": {
            "evaluation_description": description,
            "metric_id": f"{key}_at_k",
            "metric_name": f"{key}@{samples}",
            "metric_unit": "proportion",
            "metric_parameters": {"k": samples},
            "lower_is_better": False,
            "score_type": "continuous",
            # A verifier may give other rewards than 0 and 1.
            "min_score": min(0.0, figures[key] / 100),
            "max_score": max(1.0, figures[key] / 100),
        },
        "score_details": {"score": figures[key] / 100, "uncertainty": uncertainty},
        "generation_config": {
            "generation_args": {
                "temperature": evaluation.section.temperature,
                "top_p": evaluation.section.top_p,
                "max_tokens": evaluation.section.max_new_tokens,
            }
        },
    }


def instance_lines(evaluation: StoredEvaluation) -> list[str]:
    """One line for each response, each an object of the schema instance_level_eval.schema.json."""
    identity = evaluation_id(evaluation)
    rows = evaluation.table.to_pylist()
    return [json.dumps(_instance(row, evaluation, identity)) + "\n" for row in rows]


def _instance(
    row: Mapping[str, Any],
    evaluation: StoredEvaluation,
    identity: str,
) -> dict[str, Any]:
    raw = row["prompt"]
    reference = row["reference"]
    read = len(row["prompt_ids"])
    written = len(row["response_ids"])
    is_failed = row["verdict"] in UNJUDGED
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": identity,
        "model_id": evaluation.model,
        "evaluation_name": evaluation.name,
        "evaluation_result_id": f"{identity}/avg",
        "sample_id": str(row["prompt_id"]),
        "sample_hash": hashlib.sha256((raw + reference).encode()).hexdigest(),
        "interaction_type": "single_turn",
        "input": {"raw": raw, "formatted": raw, "reference": [reference]},
        "output": {"raw": [row["response"]]},
        "messages": None,
        "answer_attribution": _attribution(row["answer"], evaluation.verifier),
        "evaluation": {"score": row["reward"], "is_correct": row["reward"] > CORRECT_ABOVE},
        "token_usage": {"input_tokens": read, "output_tokens": written, "total_tokens": read + written},
        "error": f"{row['verdict']}: {row['reason']}" if is_failed else None,
        "metadata": {
            "sample": str(row["sample"]),
            "seed": str(row["seed"]),
            "verdict": row["verdict"],
            "finish_reason": str(row["finish_reason"]),
        },
    }


def _attribution(answer: str | None, verifier: str) -> list[dict[str, Any]]:
    if answer is None:
        return []
    return [
        {
            "turn_idx": 0,
            "source": "output.raw",
            "extracted_value": answer,
            "extraction_method": verifier,
            "is_terminal": True,
        }
    ]
