"""Reads a config: YAML plus `key=value` overrides, strict about keys, types and limits."""

import copy
import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from srft_ray.config.checks import check_values
from srft_ray.config.schema import Config
from srft_ray.errors import UserError, first_line, require

_SCHEMA = OmegaConf.structured(Config)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and applies `key=value` overrides.

    Raises:
        UserError: there is no such file, key or choice, or a value has the wrong type or size.
    """
    path = Path(path)
    require(
        path.is_file(), f"Config file {path} does not exist; pass the path of a YAML file (see examples/)."
    )
    try:
        given = OmegaConf.load(path)
    except Exception as error:
        raise UserError(f"Config file {path} is not valid YAML: {first_line(error)}.") from error
    require(
        isinstance(given, DictConfig),
        f"Config file {path} must hold sections such as 'model:' and 'data:', not a {type(given).__name__}.",
    )
    return _typed([(f"file {path}", given), *map(_override, overrides)])


def make_config(values: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """A checked config from a nested dictionary, for use from Python; errors as `load_config`."""
    return _typed([("the dictionary", OmegaConf.create(values)), *map(_override, overrides)])


def as_config(given: Config | str | Path) -> Config:
    """The config itself, or the one in the YAML file that is named."""
    return given if isinstance(given, Config) else load_config(given)


def read_record(path: Path) -> dict[str, Any]:
    """The sections of the config that a run or an evaluation has written.

    Raises:
        UserError: it cannot be read.
    """
    try:
        sections = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}.") from error
    require(isinstance(sections, dict) and bool(sections), f"{path} holds no sections of a config.")
    return sections


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(dataclasses.asdict(config))))


def _escaped(value: Any) -> Any:
    """With `${` in texts as OmegaConf wants it where it is no reference to another key."""
    if isinstance(value, dict):
        return {key: _escaped(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(one) for one in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def _override(text: str) -> tuple[str, DictConfig]:
    require(
        "=" in text and text[0] != "=",
        f"Override '{text}' is not of the form key=value, such as trainer.steps=10.",
    )
    try:
        return f"override '{text}'", OmegaConf.from_dotlist([text])
    except Exception as error:
        raise UserError(f"Override '{text}' cannot be read: {first_line(error)}.") from error


def _typed(parts: Sequence[tuple[str, DictConfig]]) -> Config:
    """Merges the parts, each with the place it comes from, into the schema; checks the result."""
    try:
        merged = OmegaConf.merge(_SCHEMA, *(part for _, part in parts))
    except (OmegaConfBaseException, TypeError):
        merged = _merged_by_section(parts)
    try:
        config = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        key = error.full_key
        raise UserError(
            f"Config key '{key}' has no value; set it in the YAML file or as {key}=… ."
        ) from error
    except OmegaConfBaseException as error:
        raise UserError(f"Wrong value for '{error.full_key}': {first_line(error)}.") from error
    check_values(config)
    return config


def _merged_by_section(parts: Sequence[tuple[str, DictConfig]]) -> DictConfig:
    """The same merge one section at a time: OmegaConf does not always say which one does not fit."""
    merged = copy.deepcopy(_SCHEMA)
    for where, part in parts:
        for section in part:
            _merge(merged, part, section, where)
    return merged


def _merge(merged: DictConfig, part: DictConfig, section: Any, where: str) -> None:
    """Adds a section of the part in place."""
    try:
        merged.merge_with(OmegaConf.masked_copy(part, [section]))
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise UserError(_unknown_key(where, str(error.full_key))) from error
    except (OmegaConfBaseException, TypeError) as error:
        key, cure = _misfit(Config, part)
        key = key or getattr(error, "full_key", None) or section
        raise UserError(f"Wrong value for '{key}' in {where}: {cure or first_line(error)}.") from error


def _misfit(section: type, given: DictConfig, prefix: str = "") -> tuple[str, str]:
    """The key of a section or a list that was given as a single value, and what to write; empty if there is
    none."""
    kinds = {item.name: item.type for item in dataclasses.fields(section)}
    for name, value in given.items():
        key, kind = f"{prefix}{name}", kinds.get(name)
        if isinstance(value, DictConfig):
            found = _misfit(kind, value, f"{key}.") if dataclasses.is_dataclass(kind) else ("", "")
            if found[0]:
                return found
        elif dataclasses.is_dataclass(kind) or get_origin(kind) is dict:
            keys = [item.name for item in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
            usual = next((one for one in ("name", "path") if one in keys), (keys or ["name"])[0])
            return key, f"it is a section; set its keys, such as {key}.{usual}={value}"
        elif get_origin(kind) in (list, tuple) and not isinstance(value, ListConfig):
            return key, f"it is a list; write '{key}=[{value}]'"
    return "", ""


def all_keys(node: type = Config, prefix: str = "") -> list[str]:
    """Every key of the config, dotted, sections included."""
    keys = []
    for item in dataclasses.fields(node):
        keys.append(prefix + item.name)
        if dataclasses.is_dataclass(item.type):
            keys += all_keys(item.type, f"{prefix}{item.name}.")
    return keys


def _unknown_key(where: str, key: str) -> str:
    """The sentence about an unknown key, with the key that was probably meant."""
    section, _, leaf = key.rpartition(".")
    keys = all_keys()
    siblings = [k for k in keys if section and k.startswith(f"{section}.")] or keys
    names = {k.rpartition(".")[2]: k for k in reversed(siblings)}
    elsewhere = [k for k in keys if k.endswith(f".{leaf}")]
    close = elsewhere or [names[n] for n in difflib.get_close_matches(leaf, names, n=1, cutoff=0.5)]
    sections = ", ".join(item.name for item in dataclasses.fields(Config))
    hint = f"did you mean '{close[0]}'?" if close else f"sections are {sections}."
    return f"Unknown config key '{key}' in {where}: {hint}"
