"""What an export is made of: the evaluations of a folder, each with its table and how it was sampled."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from srft_ray.config.evaluation import EvaluationSetSection, evaluation_sets
from srft_ray.config.load import load_config
from srft_ray.config.schema import Config
from srft_ray.errors import require
from srft_ray.observe import evaluation_ledger
from srft_ray.observe.evaluation import evaluation_record
from srft_ray.run.directory import RECORD


@dataclass(frozen=True)
class StoredEvaluation:
    """One evaluation set after a number of steps.

    Attributes:
        folder: a run directory, or the folder of `srft-ray evaluate`.
        section: how the set was sampled and judged.
    """

    folder: Path
    config: Config
    name: str
    step: int
    section: EvaluationSetSection

    @cached_property
    def table(self) -> pa.Table:
        return evaluation_ledger.read(self.folder, self.name, self.step)

    @cached_property
    def figures(self) -> dict[str, Any]:
        """As a line of evaluations.jsonl; see `evaluation_record`."""
        return evaluation_record(self.name, self.step, self.table)

    @property
    def model(self) -> str:
        """A name such as `srft_ray/my-run-step-500`."""
        is_run = (self.folder / "metrics.jsonl").exists()
        name = f"{self.folder.name}-step-{self.step}" if is_run else self.folder.name
        return f"srft_ray/{name}"

    @property
    def verifier(self) -> str:
        judge = self.section.judge(self.config.verifier)
        return judge.path or judge.name

    @property
    def written_at(self) -> datetime:
        """When the evaluation was done: the time of its table."""
        file = evaluation_ledger.table_file(self.folder, self.name, self.step)
        return datetime.fromtimestamp(file.stat().st_mtime, UTC)

    @property
    def file_stem(self) -> str:
        return f"{evaluation_ledger.set_folder(Path(), self.name).name}-step-{self.step}"


def stored_evaluations(folder: Path) -> list[StoredEvaluation]:
    """The evaluations of a run directory or of a folder of `srft-ray evaluate`, sorted by set and step.

    Raises:
        UserError: there is no config, or no evaluation.
    """
    record = folder / RECORD
    require(record.is_file(), f"{folder} holds no {RECORD}: pass a run directory, or an evaluation's folder.")
    config = load_config(record)
    found = list(_stored(folder, config))
    require(
        len(found) > 0,
        f"{folder} holds no evaluation: evaluate a model with srft-ray evaluate, or set "
        "trainer.evaluate_every.",
    )
    return found


def _stored(folder: Path, config: Config) -> Iterator[StoredEvaluation]:
    sections = evaluation_sets(config)
    for name, step in evaluation_ledger.tables(folder):
        # A set that was taken out of the config of a run is exported with what the run has for all sets.
        section = sections.get(name) or EvaluationSetSection(**vars(config.data))
        yield StoredEvaluation(folder, config, name, step, section)
