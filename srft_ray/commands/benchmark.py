"""`srft-ray benchmark`: models on published benchmarks, with intervals and paired comparisons."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from algorithms import GRPO
from srft_ray.commands import benchmark_table
from srft_ray.commands.benchmark_scores import Scores
from srft_ray.commands.evaluate import evaluate_models
from srft_ray.commands.evaluation_folder import model_name
from srft_ray.commands.regrade import regrade
from srft_ray.config.load import make_config
from srft_ray.config.resolve import resolve
from srft_ray.config.schema import Config
from srft_ray.data.benchmark_prompts import prompt_rows, rows_per_prompt
from srft_ray.data.benchmarks import Found
from srft_ray.observe import evaluation_ledger
from srft_ray.observe.evaluation import FIGURE_COLUMNS, Outcomes
from srft_ray.observe.journal import write_whole


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        sets: as they were found on disk.
        samples: responses for each prompt; None for as many as the papers' tables have.
        max_prompts: prompts used of each set, from its beginning; None for all.
        bare: prompts without instructions.
        lenient: whether the lenient grader's figures are shown beside those of the strict one.
        settings: sections of the config that are the same for all sets and models.
        overrides: `key=value` words.
    """

    models: Sequence[str]
    sets: dict[str, Found]
    samples: int | None
    max_prompts: int | None
    bare: bool
    lenient: bool
    settings: dict[str, dict[str, Any]]
    overrides: Sequence[str] = ()


def benchmark(request: Request, folder: Path | None = None) -> str:
    """Evaluates every model on every set; returns tables as Markdown.

    The folder holds the prompts, an evaluation ledger for each model, benchmark.md and benchmark.json. The
    same call continues one that died and repeats nothing.

    Raises:
        UserError: bad model, set or setting; before anything is sampled.
    """
    # A model that is named twice is evaluated once.
    configs = [make_benchmark_config(request, model, folder) for model in dict.fromkeys(request.models)]
    target = Path(configs[0].run.dir)
    scores: dict[str, dict[str, Scores]] = {}
    for config, done in zip(configs, evaluate_models(configs), strict=True):
        label = _free_label(model_name(resolve(config, GRPO())), scores)
        scores[label] = {name: _scores(done.folder, name, request) for name in request.sets}
    text = benchmark_table.markdown(request.sets, scores)
    write_whole(target / "benchmark.md", text + "\n")
    write_whole(
        target / "benchmark.json", json.dumps(benchmark_table.as_json(request.sets, scores), indent=1)
    )
    return text


def make_benchmark_config(
    request: Request,
    model: str,
    folder: Path | None,
) -> Config:
    """The config of one model's evaluation; writes the prompts of the sets to the folder that it names."""
    probe = make_config(_values(request, model, {"none": {}}), request.overrides)
    digest = hashlib.sha256(json.dumps(_identity(request, probe.run.seed)).encode()).hexdigest()[:10]
    target = folder or Path(probe.run.dir) / "benchmarks" / digest
    sets = {}
    for name, found in request.sets.items():
        samples = request.samples or found.benchmark.samples
        file = target.expanduser().absolute() / "prompts" / f"{name}.jsonl"
        repeats = rows_per_prompt(found, samples)
        _write_rows(
            file,
            prompt_rows(
                found,
                samples,
                probe.run.seed,
                request.bare,
            ),
        )
        sets[name] = {
            "path": str(file),
            "samples": samples // repeats,
            "max_prompts": request.max_prompts and request.max_prompts * repeats,
        }
    values = _values(request, model, sets)
    return make_config(values, [*request.overrides, f"run.dir={target}"])


def _values(
    request: Request,
    model: str,
    sets: dict[str, Any],
) -> dict[str, Any]:
    settings = {name: dict(section) for name, section in request.settings.items()}
    # A prompt that does not fit would silently make the set another one.
    data = {
        "path": "unused.jsonl",
        "overlong": "error",
    } | settings.get("data", {})
    first = next(iter(sets.values())).get("path")
    return {
        **settings,
        "model": {**settings.get("model", {}), "path": model},
        "data": data | ({"path": first} if first else {}),
        "evaluation": {**settings.get("evaluation", {}), "data": sets},
        "verifier": {"name": "math", **settings.get("verifier", {})},
    }


def _identity(request: Request, seed: int) -> list[Any]:
    """What the prompts depend on."""
    checksums = {name: found.checksum for name, found in request.sets.items()}
    return [
        checksums,
        seed,
        request.bare,
        request.samples,
    ]


def _write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the rows unless they are there: a file that changes would begin another evaluation."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if file.exists() and file.read_text() == text:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, text)


def _scores(
    folder: Path,
    name: str,
    request: Request,
) -> Scores:
    columns = [
        *FIGURE_COLUMNS,
        "sample",
        "response",
        "reference",
    ]
    table = evaluation_ledger.read(
        folder,
        name,
        0,
        columns,
    )
    strict = Outcomes.of(table)
    is_text = not request.sets[name].benchmark.is_choice
    lenient = regrade(table, "either") if request.lenient and is_text else None
    return Scores(strict, None if lenient is None else strict.means(lenient))


def _free_label(name: str, taken: dict[str, Any]) -> str:
    labels = [name, *(f"{name}-{number}" for number in range(2, len(taken) + 2))]
    return next(label for label in labels if label not in taken)


def check_gold(sets: dict[str, Found]) -> tuple[str, bool]:
    """Judges every gold answer as if it were a response: a table, and whether 99 % of each set are right."""
    tables = [_gold_table(found) for found in sets.values()]
    right = regrade(pa.concat_tables(tables), "math")
    lines = ["| set | gold answers | judged right | not judged right |", "|---|---|---|---|"]
    is_good = True
    for found, table in zip(sets.values(), tables, strict=True):
        of_set, right = np.split(right, [len(table)])
        share = float(of_set.mean())
        wrong = table.filter(pa.array(of_set < 1))["reference"].to_pylist()
        is_good = is_good and share >= 0.99
        shown = ", ".join(f"`{answer}`" for answer in wrong[:5])
        lines.append(f"| {found.benchmark.title} | {len(table)} | {100 * share:.2f} % | {shown or '–'} |")
    return "\n".join(lines), is_good


def _gold_table(found: Found) -> pa.Table:
    """A table like that of the evaluation ledger, whose responses are the gold answers."""
    rows = []
    for row in prompt_rows(found, 1, 0):
        answer = row["answer"]
        is_choice = found.benchmark.is_choice
        response = f"Answer: {answer}" if is_choice else f"So the answer is $\\boxed{{{answer}}}$."
        rows.append(
            {
                "response": response,
                "reference": answer,
                "verdict": "",
                "reward": 0.0,
            }
        )
    return pa.Table.from_pylist(rows)
