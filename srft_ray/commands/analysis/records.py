"""What the records of a run tell without a model: curves by verdict, difficulty, pass@k, accuracy by cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from srft_ray.observe import evaluation_ledger, stats
from srft_ray.observe.cost import teraflops
from srft_ray.observe.evaluation import CORRECT_ABOVE, FIGURE_COLUMNS, Outcomes
from srft_ray.observe.intervals import mean_interval
from srft_ray.observe.journal import EVALUATIONS, METRICS, read_json_lines
from srft_ray.observe.ledger_reading import files_by_step, read_step

CURVE_COLUMNS = (
    "origin",
    "verdict",
    "reward",
    "advantage",
    "response_ids",
    "logprobs",
)
QUANTILES = (0.1, 0.5, 0.9)


def curves(run_dir: Path) -> list[dict[str, Any]]:
    """One row for each step, origin and verdict: sequences, lengths, and surprise of the engine's tokens."""
    rows: list[dict[str, Any]] = []
    for step, files in sorted(files_by_step(run_dir).items()):
        table = read_step(files, step, CURVE_COLUMNS)
        labels = pa.array(
            map(" ".join, zip(table["origin"].to_pylist(), table["verdict"].to_pylist(), strict=True))
        )
        for label in sorted(set(labels.to_pylist())):
            rows.append(_curve(step, label, table.filter(pc.equal(labels, label))))
    return rows


def _curve(
    step: int,
    label: str,
    table: pa.Table,
) -> dict[str, Any]:
    lengths = pc.list_value_length(table["response_ids"]).to_numpy()
    logprobs = [value for row in table["logprobs"].to_pylist() for value in row or () if value is not None]
    low, middle, high = np.quantile(lengths, QUANTILES)
    return {
        "step": step,
        "sequences of": label,
        "sequences": len(table),
        "reward": float(np.mean(table["reward"].to_numpy())),
        "advantage": float(np.mean(table["advantage"].to_numpy())),
        "length p10": float(low),
        "length p50": float(middle),
        "length p90": float(high),
        "surprise": -float(np.mean(logprobs)) if logprobs else None,
    }


def term_weights(run_dir: Path) -> list[dict[str, Any]]:
    """Quantiles of each term's weights by step; empty unless the run wrote them (ledger.tokens)."""
    rows: list[dict[str, Any]] = []
    for step, files in sorted(files_by_step(run_dir).items()):
        table = read_step(files, step)
        if "weights" not in table.column_names:
            continue
        by_term: dict[str, list[float]] = {}
        for found in table["weights"].to_pylist():
            for term, values in found or ():
                by_term.setdefault(term, []).extend(value for value in values if value is not None)
        for term, values in by_term.items():
            if values:
                low, middle, high = np.quantile(values, QUANTILES)
                rows.append(
                    {
                        "step": step,
                        "term": term,
                        "p10": low,
                        "p50": middle,
                        "p90": high,
                    }
                )
    return rows


def difficulty(run_dir: Path) -> list[dict[str, Any]]:
    """One row for each group that was trained on: how many of its rollouts were right, and its prompt."""
    rows: list[dict[str, Any]] = []
    columns = (
        "group_id",
        "origin",
        "reward",
        "prompt",
        "attempt",
    )
    for step, files in sorted(files_by_step(run_dir).items()):
        groups: dict[int, dict[str, Any]] = {}
        for row in read_step(files, step, columns).to_pylist():
            group = groups.setdefault(row["group_id"], _new_group(step, row))
            if row["origin"] == "rollout":
                group["rollouts"] += 1
                group["right"] += row["reward"] > CORRECT_ABOVE
        rows += [groups[number] for number in sorted(groups)]
    return rows


def _new_group(step: int, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "step": step,
        "group_id": row["group_id"],
        "attempt": row["attempt"],
        "prompt": row["prompt"],
        "rollouts": 0,
        "right": 0,
    }


def pass_curves(run_dir: Path) -> list[dict[str, Any]]:
    """The unbiased pass@k of every evaluation for k = 1, 2, 4, … with intervals over prompts, in percent."""
    rows: list[dict[str, Any]] = []
    for name, step in evaluation_ledger.tables(run_dir):
        found = Outcomes.of(
            evaluation_ledger.read(
                run_dir,
                name,
                step,
                FIGURE_COLUMNS,
            )
        )
        for k in stats.powers_of_two(int(found.samples.min())):
            rates = found.pass_rates(k)
            low, high = mean_interval(rates)
            rows.append(
                {
                    "set": name,
                    "step": step,
                    "k": k,
                    "pass": 100 * float(rates.mean()),
                    "low": 100 * low,
                    "high": 100 * high,
                }
            )
    return rows


def accuracy_by_cost(run_dir: Path, parameters: int) -> list[dict[str, Any]]:
    """avg@k against tokens and operations."""
    metrics = read_json_lines(run_dir / METRICS)
    trained = _cumulated(metrics, "tokens")
    generated = _cumulated(metrics, "tokens/generated")
    rows = []
    for record in read_json_lines(run_dir / EVALUATIONS):
        step = min(record["step"], len(metrics))
        rows.append(
            {
                "set": record["set"],
                "step": record["step"],
                "tokens trained": trained[step],
                "tokens generated": generated[step],
                "TFLOPs": teraflops(parameters, trained[step], generated[step]),
                "avg": record["avg"],
            }
        )
    return rows


def _cumulated(metrics: Sequence[dict[str, Any]], key: str) -> list[float]:
    """The sum before each step, and after the last one."""
    total = [0.0]
    for record in metrics:
        total.append(total[-1] + (record.get(key) or 0.0))
    return total
