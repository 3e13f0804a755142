"""Runs that differ from one config in few keys, side by side in `<run.dir>/<run.name>-<command>/`.

A run that is finished is not repeated.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from algorithms import Algorithm
from srft_ray.config.load import to_yaml
from srft_ray.config.resolve import Resolved, resolve
from srft_ray.config.schema import Config
from srft_ray.errors import RunFailed
from srft_ray.run.directory import RECORD
from srft_ray.run.driver import fit_series
from srft_ray.run.installation import check_installation
from srft_ray.run.preflight import prepare_run
from srft_ray.run.series import series_of


@dataclass(frozen=True)
class Variant:
    """One run: its resolved config, and the algorithm if it is an instance rather than the config's
    `algorithm` section."""

    resolved: Resolved
    algorithm: Algorithm | None = None

    @classmethod
    def of(cls, config: Config, algorithm: Algorithm | None = None) -> "Variant":
        """Raises UserError as `resolve`."""
        return cls(resolve(config, algorithm), algorithm)

    @property
    def config(self) -> Config:
        return self.resolved.config


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
    """Checks the settings of all runs, then prepares the data of those that are not finished.

    Raises:
        UserError: as `fit`, for the first run that has an error.
    """
    for run in runs:
        check_installation(run.config)
    for run in unfinished(runs):
        prepare_run(run.resolved)


def unfinished(runs: Sequence[Variant]) -> list[Variant]:
    return [run for run in runs if not _finished(run.config)]


def complete(run: Variant) -> Path:
    """Trains the run if it is not finished; returns its directory.

    Raises:
        RunFailed: as `complete_all`.
    """
    complete_all([run])
    return run.config.run_dir


def complete_all(runs: Sequence[Variant]) -> None:
    """Trains what is not finished; runs that may share engines and learners' processes do so.

    Raises:
        RunFailed: as `fit`, or a run was asked to stop.
    """
    waiting = unfinished(runs)
    for numbers in series_of([run.resolved for run in waiting]):
        for result in fit_series([waiting[number].resolved for number in numbers]):
            if result.stopped:
                raise RunFailed(
                    f"stopped by {result.stopped} after step {result.steps} of {result.run_dir}; every "
                    "finished step is kept, and the same command continues"
                )


def _finished(config: Config) -> bool:
    """Whether the run was done with exactly this config."""
    record = config.run_dir / RECORD
    if not record.exists() or record.read_text() != to_yaml(config):
        return False
    return (config.run_dir / "summary.json").exists()
