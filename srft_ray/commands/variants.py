"""Runs that differ from one config in few keys, side by side in `<run.dir>/<run.name>-<command>/`.

A run that is finished is not repeated.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from algorithms import Algorithm
from srft_ray.config.schema import Config, to_yaml
from srft_ray.run.driver import fit
from srft_ray.run.preflight import resolve, resolve_settings


@dataclass(frozen=True)
class Variant:
    """One run: its config, and an instance if the `algorithm` section does not give the algorithm."""

    config: Config
    algorithm: Algorithm | None = None


def folder_of(config: Config, command: str) -> Path:
    """The directory that holds the runs of a command."""
    return Path(config.run.dir).expanduser() / f"{config.run.name}-{command}"


def derived_config(config: Config, command: str, name: str) -> Config:
    """A copy of the config with a run name and directories of its own; nothing else is changed."""
    run = copy.deepcopy(config)
    run.run.dir = str(folder_of(config, command))
    run.run.name = name
    if run.trainer.checkpoint_path:
        root = run.trainer.checkpoint_path.rstrip("/")
        run.trainer.checkpoint_path = f"{root}/{config.run.name}-{command}"
    return run


def check(runs: Sequence[Variant]) -> None:
    """Resolves the settings of all runs, then prepares the data of those that are not finished.

    Raises:
        UserError: as `resolve`, for the first run that has an error.
    """
    for run in runs:
        resolve_settings(run.config, run.algorithm)
    for run in unfinished(runs):
        resolve(run.config, run.algorithm)


def unfinished(runs: Sequence[Variant]) -> list[Variant]:
    return [run for run in runs if not _finished(run.config)]


def complete(run: Variant) -> Path:
    """Trains the run if it is not finished; returns its directory."""
    if not _finished(run.config):
        fit(run.config, run.algorithm)
    return run.config.run_dir


def _finished(config: Config) -> bool:
    record = config.run_dir / "config.yaml"
    if not record.exists() or record.read_text() != to_yaml(config):
        return False
    return (config.run_dir / "summary.json").exists()
