"""The `algorithm` section of the config -> an algorithm."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from ray import cloudpickle

from algorithms import REGISTRY, Algorithm, Schedule
from srft_ray.config.schema import nearest, require
from srft_ray.errors import UserError
from srft_ray.plugins import load_object

KINDS = {"float": (int, float), "int": (int,), "str": (str,), "bool": (bool,)}


def make_algorithm(section: Mapping[str, Any], key: str = "algorithm") -> Algorithm:
    """From `name` (registered) or `path` (file.py:Class) and the algorithm's own fields. UserError: unknown name or field, wrong type or value."""
    settings = dict(section)
    name, path = settings.pop("name", None), settings.pop("path", None)
    if path is None:
        require(name in REGISTRY, f"Unknown {key}.name {name!r}: {nearest(name, REGISTRY)}")
        return _construct(REGISTRY[name], settings, key)
    cls = load_object(path, f"{key}.path")
    require(
        isinstance(cls, type) and issubclass(cls, Algorithm),
        f"{key}.path={path} is not a subclass of algorithms.Algorithm.",
    )
    cloudpickle.register_pickle_by_value(
        sys.modules[cls.__module__]
    )  # Ray's workers cannot import the file by name
    return _construct(cls, settings, key)


def settings_of(algorithm: Algorithm, section: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of an algorithm as a config section, so that the resolved config holds every number that enters the update.
    `section` is the one that it was made from, or empty for an instance."""
    found: dict[str, Any] = {"path": section["path"]} if section.get("path") else {"name": algorithm.name}
    for field in dataclasses.fields(algorithm) if dataclasses.is_dataclass(algorithm) else ():
        value = getattr(algorithm, field.name)
        if isinstance(value, Algorithm):
            value = settings_of(value, section.get(field.name, {}))
        found[field.name] = dataclasses.asdict(value) if isinstance(value, Schedule) else value
    return found


def check_terms(algorithm: Algorithm, key: str = "algorithm") -> None:
    """Raises UserError if the terms of an algorithm cannot be made, or if their names are not allowed."""
    try:
        _ = algorithm.needs  # makes the terms
    except (ValueError, TypeError, NotImplementedError) as error:
        title = getattr(algorithm, "name", type(algorithm).__name__)
        raise UserError(f"The settings of {key} do not fit {title}: {error}.") from error


def _construct(cls: type[Any], settings: dict[str, Any], key: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    title = getattr(cls, "name", cls.__name__)
    for name, value in settings.items():
        hint = nearest(name, fields) if fields else "it has no settings."
        require(name in fields, f"Unknown config key '{key}.{name}' for {title}: {hint}")
        if isinstance(value, Mapping):
            kind = fields[name].type
            settings[name] = (
                _construct(Schedule, dict(value), f"{key}.{name}")
                if kind is Schedule
                else make_algorithm(value, f"{key}.{name}")
            )
        else:
            _check_type(fields[name], value, f"{key}.{name}")
    try:
        made = cls(**settings)
    except (ValueError, TypeError) as error:
        raise UserError(f"The settings of {key} do not fit {title}: {error}.") from error
    if isinstance(made, Algorithm):
        check_terms(made, key)
    return made


def _check_type(field: dataclasses.Field[Any], value: Any, key: str) -> None:
    wanted = str(field.type if isinstance(field.type, str) else getattr(field.type, "__name__", field.type))
    require(
        "Algorithm" not in wanted,
        f"Wrong value for '{key}': {value!r} must be the keys of an algorithm, such as {key}.name={value}.",
    )
    require(
        field.type is not Schedule,
        f"Wrong value for '{key}': {value!r} must be keys of a schedule, such as {key}.lr=1e-5.",
    )
    allowed = [kind for name in wanted.replace(" ", "").split("|") for kind in KINDS.get(name, ())]
    fits = isinstance(value, tuple(allowed)) and (bool in allowed or not isinstance(value, bool))
    require(
        fits or not allowed or (value is None and "None" in wanted),
        f"Wrong value for '{key}': {value!r} is not of type {wanted}.",
    )
