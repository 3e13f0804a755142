"""Where an evaluation is kept: a folder that is named after everything that its result depends on."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from srft_ray.config.formats import data_format
from srft_ray.config.resolve import Resolved
from srft_ray.config.rollout import RolloutSection
from srft_ray.data.prepare import file_stamps
from srft_ray.errors import require
from srft_ray.observe.journal import write_whole

IDENTITY = "evaluation.json"
STEP_FOLDER = re.compile(r"step-\d+")


def evaluation_folder(resolved: Resolved, given: Path | None = None) -> Path:
    """The folder of this evaluation, which exists then, with its identity.

    Args:
        given: the folder that the user asks for, in the place of one in `run.dir`.

    Raises:
        UserError: the folder that is asked for holds another evaluation, or something else.
    """
    identity = evaluation_identity(resolved)
    text = json.dumps(identity, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    default = Path(resolved.config.run.dir) / "evaluations" / f"{model_name(resolved)}-{digest}"
    folder = (given or default).expanduser().absolute()
    record = folder / IDENTITY
    is_new = not folder.exists() or not any(folder.iterdir())
    require(
        is_new or (record.is_file() and record.read_text() == text),
        f"{folder} holds another evaluation, or other files: choose another --output.",
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(record, text)
    return folder


def evaluation_identity(resolved: Resolved) -> dict[str, Any]:
    """What the result depends on: model, data, sampling, verifier and seed, with the state of their files."""
    config = resolved.config
    sets = {
        name: {
            "settings": dataclasses.asdict(section),
            "files": _stamps(section.data),
        }
        for name, section in resolved.evaluation.items()
    }
    return {
        "model": dataclasses.asdict(config.model),
        "model_files": file_stamps(Path(config.model.path).expanduser()),
        "sets": sets,
        "verifier": [config.verifier.name, config.verifier.path, config.verifier.timeout_s],
        "verifier_files": _verifier_stamps(resolved),
        "seed": config.run.seed,
        "dtype": config.rollout.dtype,
        **_unusual_sampling(config.rollout),
    }


def _unusual_sampling(rollout: RolloutSection) -> dict[str, Any]:
    """Those settings of all sets that are no default, with the state of the environment's file."""
    usual = RolloutSection()
    keys = ("stop", "environment", "max_turns", "engine", "tensor_parallel")
    changed = {key: getattr(rollout, key) for key in keys if getattr(rollout, key) != getattr(usual, key)}
    if rollout.environment:
        changed["environment_files"] = file_stamps(Path(rollout.environment.rpartition(":")[0]))
    return changed


def model_name(resolved: Resolved) -> str:
    """A short name: the last folder of the path, or run and step of a checkpoint of a run."""
    path = Path(resolved.config.model.path)
    folder = path.parent if path.name == "hf" else path
    if STEP_FOLDER.fullmatch(folder.name) and folder.parent.name == "checkpoints":
        return f"{folder.parent.parent.name}-{folder.name}"
    return path.name


def _stamps(data: Any) -> list[Any]:
    if data_format(data) == "tasks":
        return []
    return file_stamps(Path(data.path).expanduser())


def _verifier_stamps(resolved: Resolved) -> list[Any]:
    judges = [section.judge(resolved.config.verifier) for section in resolved.evaluation.values()]
    files = sorted({judge.path.rpartition(":")[0] for judge in judges if judge.path})
    return [stamp for file in files for stamp in file_stamps(Path(file))]
