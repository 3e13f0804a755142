"""The run directory: which earlier run in it may be continued, and the lock that one process holds on it."""

import dataclasses
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from algorithms import Algorithm
from srft_ray.config.resolve import Resolved
from srft_ray.config.schedule import learning_rate, stage_size
from srft_ray.config.schema import Config
from srft_ray.errors import UserError, require
from srft_ray.train.checkpoint import CheckpointStore

LOCK = ".lock"
RECORD = "config.yaml"


def check_run_directory(resolved: Resolved, store: CheckpointStore) -> None:
    """Refuses a directory that the run cannot use. One that holds the same run, or its first steps, is continued.

    Raises:
        UserError: a file is in the way, or the directory or the checkpoints are of another run.
    """
    folder = resolved.run_dir
    for path in (folder, *folder.parents):
        require(
            path.is_dir() or not path.exists(),
            f"{path} is not a directory, so that the run directory {folder} cannot be made: choose another run.dir or "
            "run.name.",
        )
    if not (folder / RECORD).exists():
        _check_new(folder, store)
        return
    require(
        resolved.config.run.resume == "auto",
        f"The run directory {folder} already holds a run, and run.resume=never: choose another run.name or delete it.",
    )
    before = _recorded(folder / RECORD)
    changed = changes(before, dataclasses.asdict(resolved.config))
    if changed == ["trainer.steps"] and same_steps(resolved, before["trainer"]["steps"], store.latest()):
        return
    require(
        not changed,
        f"The run directory {folder} already holds a different run ({', '.join(changed)} changed): choose another "
        "run.name or delete it.",
    )


def _check_new(folder: Path, store: CheckpointStore) -> None:
    """A directory without a run holds at most what a start leaves that was interrupted before it wrote the config."""
    left_by_a_start = {LOCK, "groups", f"{RECORD}.part"}
    require(
        not folder.exists() or {path.name for path in folder.iterdir()} <= left_by_a_start,
        f"The run directory {folder} is not empty and holds no run: choose another run.name.",
    )
    require(
        store.latest() == 0,
        f"{store.scheme}{store.root} holds checkpoints of another run: choose another run.name or "
        "trainer.checkpoint_path.",
    )


def _recorded(path: Path) -> dict[str, Any]:
    """The config that a run was started with; keys that are newer than the record have their defaults."""
    record = OmegaConf.to_container(OmegaConf.load(path))
    defaults = dataclasses.asdict(Config())
    for section, values in defaults.items():
        if section != "algorithm":
            record[section] = {**values, **record.get(section, {})}
    return record


def resumable_keys() -> set[str]:
    """Keys that may change when a run is continued, as their fields in the schema say."""
    return {
        f"{section.name}.{item.name}"
        for section in dataclasses.fields(Config)
        if dataclasses.is_dataclass(section.type)
        for item in dataclasses.fields(section.type)
        if item.metadata["may_change"]
    }


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Keys with another value that enter what a run computes, sorted; of another algorithm its name alone."""
    may_change = resumable_keys()
    found = []
    for section in before.keys() | now.keys():
        old, new = before.get(section, {}), now.get(section, {})
        for key in old.keys() | new.keys():
            name = f"{section}.{key}"
            if name not in may_change and old.get(key) != new.get(key):
                found.append(name)
    methods = [name for name in ("algorithm.name", "algorithm.path") if name in found]
    if methods:  # the settings of another method differ anyway
        found = [name for name in found if not name.startswith("algorithm.")] + methods
    return sorted(found)


def same_steps(resolved: Resolved, before: int, done: int) -> bool:
    """Whether the `done` steps of a run of `before` steps are those that this run would have begun with."""
    config = resolved.config
    now = config.trainer.steps
    if done > now:
        return False
    return all(
        _content(config, resolved.algorithm, step, before) == _content(config, resolved.algorithm, step, now)
        for step in range(done)
    )


def _content(config: Config, algorithm: Algorithm, step: int, steps: int) -> tuple[str, int, int, float]:
    """What a step of a run of `steps` steps does: its method and where it began, its groups and its learning rate."""
    stage = algorithm.stage(step, steps)
    rate = learning_rate(config.learner, stage, step)
    return stage.algorithm.name, stage.start, stage_size(config.trainer, stage), rate


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Makes the run directory this process's own; the system releases it when the process ends, however it ends.

    Raises:
        UserError: another process trains in it.
    """
    (run_dir / "groups").mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another process trains in the run directory {run_dir}: wait for its end or choose another run.name."
            ) from None
        yield
