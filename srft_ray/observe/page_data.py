"""What the page of a run shows, as data for JSON."""

import itertools
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from srft_ray.config.load import read_record
from srft_ray.observe import evaluation_ledger
from srft_ray.observe.evaluation import CORRECT_ABOVE
from srft_ray.observe.journal import EVALUATIONS, EVENTS, METRICS, read_json_lines
from srft_ray.observe.page_comparisons import averages_of, model_step
from srft_ray.observe.page_groups import sampled_groups
from srft_ray.text import sanitize_text

Pieces = Callable[[Sequence[int]], list[str]]  # the text of each token id
EVENTS_SHOWN = 200  # the newest ones
RESPONSES = 4  # of a prompt that are shown of an evaluation


@dataclass(frozen=True)
class Limits:
    """How much of a run's ledgers its page shows.

    Attributes:
        steps: of the training ledger.
        groups: of one step.
        prompts: of an evaluation set, with responses.
        characters: of one text.
        tokens: of one response.
    """

    steps: int = 12
    groups: int = 8
    prompts: int = 30
    characters: int = 4000
    tokens: int = 400

    @property
    def rule(self) -> str:
        return (
            f"Of the ledger the page shows at most {self.steps} steps, evenly spaced with the first and the "
            f"last, and of each the first {self.groups} groups by number; "
            f"of an evaluation the averages of all prompts, and responses to {self.prompts} of them: "
            "first those whose average changed most between the first and the last evaluation. "
            f"Texts are cut after {self.characters:,} characters, responses after {self.tokens:,} tokens."
        )

    @classmethod
    def none(cls) -> "Limits":
        """Everything is shown; the page of a large run does not open in a browser then."""
        return cls(
            10**9,
            10**9,
            10**9,
            10**9,
            10**9,
        )


def run_data(
    run_dir: Path,
    limits: Limits,
    pieces: Pieces | None,
) -> dict[str, Any]:
    """One run: its figures, its events, and samples of its ledgers."""
    summary = run_dir / "summary.json"
    config = run_dir / "config.yaml"
    steps = read_json_lines(run_dir / METRICS)
    return {
        "name": run_dir.name,
        "finished": summary.exists(),
        "failure": _text(run_dir / "failure.txt", limits),
        "config": _text(config, limits),
        "about": _about(run_dir.name, config),
        "model_step": model_step(run_dir),
        "metrics": _columns(steps),
        "evaluations": read_json_lines(run_dir / EVALUATIONS),
        "events": _events(run_dir, steps),
        "groups": sampled_groups(
            run_dir, limits.steps, limits.groups, limits.characters, limits.tokens, pieces
        ),
        "sets": _evaluation_sets(run_dir, limits),
    }


def _events(run_dir: Path, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest events, each with its step: the first one that was recorded after it."""
    ends = [record["time/recorded"] for record in steps if "time/recorded" in record]
    events = read_json_lines(run_dir / EVENTS)[-EVENTS_SHOWN:]
    if len(ends) < len(steps) or not steps:  # steps of older runs do not say when they were recorded
        return events
    numbers = [record["step"] for record in steps]
    after = [*numbers, numbers[-1] + 1]
    return [event | {"step": after[bisect_left(ends, event["time"])]} for event in events]


def _about(name: str, config: Path) -> dict[str, Any]:
    """What runs are compared by: method, seed and model.

    The method is the name of the run without its seed if it ends with that, as those of comparisons do.
    """
    if not config.exists():
        return {}
    sections = read_record(config)
    algorithm = dict(sections.get("algorithm") or {})
    seed = (sections.get("run") or {}).get("seed")
    label = name.removesuffix(f"-seed{seed}")
    return {
        "method": label if label != name else algorithm.get("name") or algorithm.get("path") or "",
        "seed": seed,
        "model": (sections.get("model") or {}).get("path"),
    }


def _text(file: Path, limits: Limits) -> str:
    return sanitize_text(file.read_text(errors="replace"), limits.characters) if file.exists() else ""


def _columns(records: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """One list for each key that is a number in some record; null where a record lacks it."""
    keys = dict.fromkeys(key for record in records for key in record)
    numbers = (int, float, type(None))
    kept = [key for key in keys if all(isinstance(record.get(key), numbers) for record in records)]
    return {key: [record.get(key) for record in records] for key in kept}


def _evaluation_sets(run_dir: Path, limits: Limits) -> list[dict[str, Any]]:
    """Each set: the averages of all prompts at every evaluation, and responses to some of them."""
    by_set = itertools.groupby(evaluation_ledger.tables(run_dir), key=lambda found: found[0])
    return [
        _evaluation_set(
            run_dir,
            name,
            [step for _, step in found],
            limits,
        )
        for name, found in by_set
    ]


def _evaluation_set(
    run_dir: Path,
    name: str,
    steps: list[int],
    limits: Limits,
) -> dict[str, Any]:
    averages = [averages_of(run_dir, name, step) for step in steps]
    prompts = sorted(averages[0])
    changes = {prompt: abs(averages[-1].get(prompt, 0.0) - averages[0][prompt]) for prompt in prompts}
    chosen = sorted(prompts, key=lambda prompt: (-changes[prompt], prompt))[: limits.prompts]
    shown_steps = list(dict.fromkeys([steps[0], steps[-1]]))
    return {
        "name": name,
        "steps": steps,
        "prompts": prompts,
        "averages": [[found.get(prompt) for prompt in prompts] for found in averages],
        "shown": _shown_prompts(
            run_dir,
            name,
            shown_steps,
            sorted(chosen),
            limits,
        ),
    }


def _shown_prompts(
    run_dir: Path, name: str, steps: Sequence[int], chosen: Sequence[int], limits: Limits
) -> list[dict[str, Any]]:
    columns = (
        "prompt_id",
        "sample",
        "prompt",
        "reference",
        "response",
        "verdict",
        "reason",
        "answer",
        "reward",
    )
    found: dict[int, dict[str, Any]] = {}
    for step in steps:
        table = evaluation_ledger.read(
            run_dir,
            name,
            step,
            columns,
        )
        wanted = pa.array([prompt in set(chosen) for prompt in table["prompt_id"].to_pylist()])
        for row in table.filter(wanted).to_pylist():
            prompt = found.setdefault(
                row["prompt_id"],
                {
                    "id": row["prompt_id"],
                    "prompt": sanitize_text(row["prompt"] or "", limits.characters),
                    "reference": sanitize_text(row["reference"] or "", limits.characters),
                    "responses": [],
                },
            )
            if sum(response["step"] == step for response in prompt["responses"]) < RESPONSES:
                prompt["responses"].append(_response(row, step, limits))
    return [found[prompt] for prompt in sorted(found)]


def _response(
    row: dict[str, Any],
    step: int,
    limits: Limits,
) -> dict[str, Any]:
    return {
        "step": step,
        "sample": row["sample"],
        "text": sanitize_text(row["response"] or "", limits.characters),
        "verdict": row["verdict"],
        "reason": sanitize_text(row["reason"] or "", 200),
        "answer": sanitize_text(row["answer"] or "", 200),
        "correct": row["reward"] > CORRECT_ABOVE,
    }
