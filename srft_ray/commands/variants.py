"""Runs that differ from one config in few keys, side by side in `<run.dir>/<run.name>-<command>/`. Finished ones are not repeated."""

import copy
from collections.abc import Sequence
from pathlib import Path

from srft_ray.config.schema import Config, to_yaml
from srft_ray.run.driver import fit
from srft_ray.run.preflight import resolve, resolve_settings


def folder_of(config: Config, command: str) -> Path:
    return Path(config.run.dir).expanduser() / f"{config.run.name}-{command}"


def variant(config: Config, command: str, name: str) -> Config:
    """The config with a name and directory of its own, and nothing else changed."""
    run = copy.deepcopy(config)
    run.run.dir, run.run.name = str(folder_of(config, command)), name
    if run.trainer.checkpoint_path:
        run.trainer.checkpoint_path = f"{run.trainer.checkpoint_path.rstrip('/')}/{config.run.name}-{command}"
    return run


def check(runs: Sequence[Config]) -> None:
    """Resolves the settings of all and prepares the data of those to be done. UserError as `resolve`, settings first."""
    for run in runs:
        resolve_settings(run)
    for run in unfinished(runs):
        resolve(run)


def unfinished(runs: Sequence[Config]) -> list[Config]:
    return [run for run in runs if not _finished(run)]


def complete(run: Config) -> Path:
    """The directory of the run, which is done first if it is not finished."""
    if not _finished(run):
        fit(run)
    return run.run_dir


def _finished(run: Config) -> bool:
    record = run.run_dir / "config.yaml"
    return record.exists() and record.read_text() == to_yaml(run) and (run.run_dir / "summary.json").exists()
