"""Settings of the run that wrote a model: an evaluation of it renders, samples and judges as the run did."""

import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from srft_ray.config.load import read_record
from srft_ray.config.schema import Config
from srft_ray.errors import UserError
from srft_ray.run.directory import RECORD

# Not model.trust_remote_code: code in a model directory is executed only where the user says so.
TAKEN = (
    "model.dtype",
    "model.max_length",
    "data.template",
    "data.system_prompt",
    "rollout.dtype",
    "rollout.max_new_tokens",
    "rollout.stop",
    "rollout.environment",
    "rollout.max_turns",
    "verifier.name",
    "verifier.path",
    "verifier.timeout_s",
)
# Verifiers that `auto` chooses by the data; the data of the evaluation are others.
CHOSEN_BY_DATA = ("math", "tasks")
VERIFIER = {"verifier.name", "verifier.path"}  # a user who gives one of them chooses another verifier
# A benchmark has its own.
LENGTHS_AND_VERIFIER = {"model.max_length", "rollout.max_new_tokens", "verifier.timeout_s", *VERIFIER}


def settings_of_run(model: str, given: Collection[str]) -> dict[str, Any]:
    """What the config of the run that wrote the model says and is no default, by dotted key.

    Empty unless the model is `<run>/checkpoints/step-N/hf` and the run's config is there.

    Args:
        given: dotted keys that the user has set, which are left out.

    Raises:
        UserError: the run's config cannot be read, or its verifier was given from Python.
    """
    record = record_of_run(model)
    if record is None:
        return {}
    try:
        written = read_record(record)
    except UserError as error:
        raise UserError(f"The config of the model's run: {error}") from error
    left_out = {*given, *(VERIFIER if VERIFIER & {*given} else ())}
    usual = OmegaConf.structured(Config)
    found = {}
    for key in TAKEN:
        value = _select(written, key)
        if key not in left_out and value is not None and value != OmegaConf.select(usual, key):
            found[key] = value
    judge = str(found.get("verifier.name", ""))
    if judge in CHOSEN_BY_DATA:
        del found["verifier.name"]
    if judge.startswith("python:"):
        raise UserError(
            f"The run of {model} was judged by {judge}, a function that was given from Python: set "
            "verifier.name or verifier.path, or evaluate from Python."
        )
    return found


def _select(sections: Any, key: str) -> Any:
    """The value of a dotted key; None if there is none."""
    for name in key.split("."):
        sections = sections.get(name) if isinstance(sections, dict) else None
    return sections


def record_of_run(model: str) -> Path | None:
    """The config of the run that wrote the model, if it is where runs have it."""
    folder = Path(model).expanduser().absolute()
    checkpoints = folder.parent.parent
    record = checkpoints.parent / RECORD
    return record if checkpoints.name == "checkpoints" and record.is_file() else None


def sentence(model: str, settings: Mapping[str, Any]) -> str:
    """What was taken from the run of the model, in one line."""
    words = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"as in {record_of_run(model)}: {words}"


def unused(model: str, given: Collection[str]) -> str:
    """What a benchmark, which asks all models alike, does not take from the run of the model, in one line;
    empty if there is nothing."""
    words = [
        f"{key}={value}" for key, value in settings_of_run(model, {*given, *LENGTHS_AND_VERIFIER}).items()
    ]
    if not words:
        return ""
    return f"not as in {record_of_run(model)}: add {shlex.join(words)} to ask all models so"
