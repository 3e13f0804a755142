"""The run directory: which earlier run in it may be continued, and from which step."""

import dataclasses
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pyarrow import fs

from algorithms import Algorithm
from srft_ray.config.resolve import Resolved
from srft_ray.config.schedule import learning_rate, stage_size
from srft_ray.config.schema import Config
from srft_ray.config.training import TrainerSection
from srft_ray.data.plan import StreamPlan
from srft_ray.errors import RunFailed, require
from srft_ray.observe.journal import CHECKPOINTS, EVALUATIONS, last_record, read_json_lines
from srft_ray.run import identity
from srft_ray.run.lock import LOCK, check_path
from srft_ray.train.checkpoint import CheckpointStore

RECORD = "config.yaml"


def check_run_directory(resolved: Resolved, store: CheckpointStore) -> None:
    """Refuses a directory that the run cannot use. One that holds the same run, or its first steps, is
    continued.

    Raises:
        UserError: a file is in the way, or the directory or the checkpoints are of another run.
    """
    folder = resolved.run_dir
    check_path(folder)
    if resolved.config.run.resume == "from_scratch":
        require(
            isinstance(store.files, fs.LocalFileSystem),
            f"run.resume=from_scratch cannot rename checkpoints on {store.scheme}: choose another run.name.",
        )
        return
    identity.check_owner(store, identity.read_identity(folder))
    if not (folder / RECORD).exists():
        _check_new(folder, store)
        return
    require(
        resolved.config.run.resume == "auto",
        f"The run directory {folder} already holds a run, and run.resume=never: choose another run.name or "
        "delete it.",
    )
    before = _recorded(folder / RECORD)
    changed = changes(before, dataclasses.asdict(resolved.config))
    if changed == ["trainer.steps"] and same_steps(resolved, before["trainer"]["steps"], store.latest()):
        return
    require(
        not changed,
        f"The run directory {folder} already holds a different run ({', '.join(changed)} changed): choose "
        "another run.name or delete it.",
    )


def _check_new(folder: Path, store: CheckpointStore) -> None:
    """A directory without a run holds at most what a start leaves that was interrupted before it wrote the
    config."""
    left_by_a_start = {LOCK, "groups", identity.RECORD, f"{identity.RECORD}.part", f"{RECORD}.part"}
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
    """What a step of a run of `steps` steps does: its method and where it began, its groups and its learning
    rate."""
    stage = algorithm.stage(step, steps)
    rate = learning_rate(config.learner, stage, step)
    return stage.algorithm.name, stage.start, stage_size(config.trainer, stage), rate


def archive(run_dir: Path, store: CheckpointStore) -> None:
    """Moves what the run directory and the folder of checkpoints hold to folders beside them, for a start
    from scratch."""
    suffix = time.strftime(".archived-%Y%m%d-%H%M%S")
    if store.files.get_file_info(store.root).type == fs.FileType.Directory and not _is_inside(store, run_dir):
        store.files.move(store.root, f"{store.root}{suffix}")
    entries = [path for path in run_dir.iterdir() if path.name != LOCK]
    if entries:
        kept = run_dir.with_name(f"{run_dir.name}{suffix}")
        kept.mkdir()
        for path in entries:
            path.rename(kept / path.name)


def _is_inside(store: CheckpointStore, run_dir: Path) -> bool:
    """Whether the checkpoints are in the run directory."""
    return not store.scheme and Path(store.root).is_relative_to(run_dir.absolute())


def check_saved(store: CheckpointStore, run_dir: Path, start: int) -> None:
    """Refuses to begin at `start` if the run has saved later steps, unless their checkpoint is there, but
    damaged.

    Raises:
        RunFailed: the storage does not hold what the run has saved. Nothing is removed.
    """
    saved = last_record(run_dir / CHECKPOINTS)
    recorded = saved["step"] if saved else 0
    lost = start < recorded and (start == 0 or recorded not in store.damaged_steps())
    if lost:
        raise RunFailed(
            f"The run in {run_dir} has saved {recorded} steps, but {store.scheme}{store.root} holds "
            f"{f'{start} of them' if start else 'no whole checkpoint'}: mount or restore that storage, or "
            "start anew with run.resume=from_scratch, which keeps what is there under another name"
        )


def choose_start(store: CheckpointStore, run_dir: Path, run_id: str) -> int:
    """The step of the newest whole checkpoint, at which the run goes on; 0 without one.

    All of the checkpoint is read.

    Raises:
        RunFailed: as `check_saved`, or the checkpoint is of another run.
    """
    start = store.newest_whole()
    check_saved(store, run_dir, start)
    owner = store.manifest(start).get("run_id", run_id) if start else run_id
    if owner != run_id:
        raise RunFailed(
            f"The checkpoint {store.scheme}{store.path(start)} is of another run ({owner}): nothing was "
            "loaded"
        )
    return start


def is_done(
    store: CheckpointStore, trainer: TrainerSection, plan: StreamPlan, evaluated: Collection[str]
) -> bool:
    """Whether the last checkpoint of a run is there, and the evaluations after it are recorded.

    They are not if a longer run was begun and given up.

    Args:
        evaluated: names of the evaluation sets.
    """
    if not store.finished(trainer):
        return False
    last = store.latest()
    if not plan.evaluates(last):
        return True
    records = read_json_lines(store.run_dir / EVALUATIONS)
    return {record["set"] for record in records if record["step"] == last} >= set(evaluated)
