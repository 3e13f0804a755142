"""All analyses of a run: tables as Parquet and Markdown, and plots, in one folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from srft_ray.commands.analysis import plots, records, scoring, token_shift
from srft_ray.commands.analysis.dynamics import dynamics
from srft_ray.commands.analysis.gradients import term_gradients
from srft_ray.commands.analysis.texts import first_texts, sampled_texts
from srft_ray.commands.analysis.weights import weight_changes
from srft_ray.commands.benchmark_scores import table
from srft_ray.config.load import load_config, read_record
from srft_ray.config.schema import ModelSection
from srft_ray.errors import UserError, require
from srft_ray.models import count_parameters, is_local
from srft_ray.observe.journal import write_whole
from srft_ray.observe.ledger_reading import files_by_step

FOLDER = "analysis"
SHOWN_ROWS = 40  # of a table in analysis.md

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Settings:
    """How much is scored.

    Attributes:
        against: further reference models, by path.
        texts: of each kind (demonstration, right, wrong) that models score.
        steps: of the ledger that texts of the token analysis come from.
        longest: tokens of a text.
        gradients: checkpoints at which the gradient of each term is measured.
    """

    against: Sequence[str] = ()
    texts: int = 48
    steps: int = 6
    longest: int = 4096
    gradients: int = 8


def study(
    run_dir: Path,
    settings: Settings,
    folder: Path | None = None,
) -> Path:
    """Writes all tables and plots that the run has the records for; returns the page analysis.md.

    Raises:
        UserError: no ledger, or a model that is named cannot be read.
    """
    require(bool(files_by_step(run_dir)), f"{run_dir} has no ledger: pass the directory of a run.")
    target = folder or run_dir / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    base = _base_model(run_dir)
    checkpoints = _checkpoints(run_dir)
    found = _from_records(run_dir, base)
    if base is not None and checkpoints:
        found |= _from_models(
            run_dir,
            settings,
            base,
            checkpoints,
            target,
        )
    for name, rows in found.items():
        if rows:
            pq.write_table(pa.Table.from_pylist(rows), target / f"{name}.parquet")
    plots.draw(found, target)
    page = target / "analysis.md"
    write_whole(page, markdown(run_dir.name, found))
    return page


def _from_records(run_dir: Path, base: str | None) -> dict[str, Rows]:
    parameters = count_parameters(ModelSection(path=base, max_length=2)) if base else 0
    return {
        "curves": records.curves(run_dir),
        "term_weights": records.term_weights(run_dir),
        "difficulty": records.difficulty(run_dir),
        "pass_at_k": records.pass_curves(run_dir),
        "accuracy_by_cost": records.accuracy_by_cost(run_dir, parameters),
    }


def _from_models(
    run_dir: Path, settings: Settings, base: str, checkpoints: Mapping[int, Path], target: Path
) -> dict[str, Rows]:
    last = checkpoints[max(checkpoints)]
    before = scoring.load(base)
    after = scoring.load(last)
    texts = sampled_texts(
        run_dir,
        settings.texts,
        settings.steps,
        settings.longest,
    )
    require(
        len(texts) > 0,
        f"{run_dir} holds no sampled text of at most {settings.longest} tokens: there is nothing to analyze.",
    )
    tokens = token_shift.token_table(before, after, texts)
    pq.write_table(tokens, target / "tokens.parquet")
    references = {
        "base": before,
        "last": after,
    }
    for path in settings.against:
        references[Path(path).name] = scoring.load(path)
    probes = first_texts(run_dir, settings.texts, settings.longest)
    found = {
        "token_shift": token_shift.summary(tokens),
        "dynamics": dynamics({0: base, **checkpoints}, references, probes),
        "gradients": _gradients(run_dir, settings, {0: base, **checkpoints}),
    }
    if is_local(base):
        found["weights"] = weight_changes(Path(base).expanduser(), last)
    return found


def _gradients(run_dir: Path, settings: Settings, checkpoints: Mapping[int, Path | str]) -> Rows:
    """Empty, with a note, where the run's algorithm cannot be made from its config."""
    try:
        config = load_config(run_dir / "config.yaml")
        return term_gradients(run_dir, config, checkpoints, settings.gradients)
    except UserError as error:
        print(f"analyze: gradients of terms are not measured: {error}")
        return []


def _base_model(run_dir: Path) -> str | None:
    """The model that the run began with; None if its config is not there."""
    config = run_dir / "config.yaml"
    if not config.is_file():
        return None
    return read_record(config).get("model", {}).get("path")


def _checkpoints(run_dir: Path) -> dict[int, Path]:
    """Model directories by step, of those checkpoints that are in the run directory."""
    found = {}
    for folder in (run_dir / "checkpoints").glob("step-*"):
        if (folder / "hf" / "config.json").is_file():
            found[int(folder.name.removeprefix("step-"))] = folder / "hf"
    return found


TITLES = {
    "token_shift": "Token shift: what training changed, on the run's own texts",
    "dynamics": "Learning dynamics: the probe set of the first step at every checkpoint",
    "curves": "Sequences by origin and verdict",
    "term_weights": "Weights of the terms",
    "gradients": "Gradients of the terms: norms before clipping, and cosines",
    "pass_at_k": "pass@k in percent, with 95 % intervals",
    "accuracy_by_cost": "Accuracy against tokens and operations",
    "weights": "Changes of the weights from the first to the last model",
    "difficulty": "Prompts: right rollouts of each group",
}


def markdown(name: str, found: Mapping[str, Rows]) -> str:
    lines = [f"# Analysis of {name}", ""]
    for key, title in TITLES.items():
        rows = found.get(key)
        if not rows:
            continue
        lines += [
            f"## {title}",
            "",
            f"All {len(rows)} rows are in {key}.parquet.",
            "",
        ]
        if key in plots.PLOTS:
            lines += [f"![{title}]({key}.png)", ""]
        if key != "difficulty":
            lines += [_table(rows[:SHOWN_ROWS]), ""]
    return "\n".join(lines)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = list(rows[0])
    return table(heads, [[_cell(row.get(head)) for head in heads] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|")
