"""Makes an algorithm from the `algorithm` section of the config, and the section from an algorithm."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from ray import cloudpickle

from algorithms import REGISTRY, Algorithm, Schedule
from srft_ray.errors import UserError, nearest, require
from srft_ray.plugins import load_object

TYPES_BY_NAME = {"float": (int, float), "int": (int,), "str": (str,), "bool": (bool,)}


def make_algorithm(section: Mapping[str, Any], key: str = "algorithm") -> Algorithm:
    """The algorithm that a section names, with its settings.

    Args:
        section: `name` (registered) or `path` (file.py:Class), and the algorithm's own fields.
        key: the config key of the section, for messages.

    Raises:
        UserError: unknown name or field, or a value of the wrong type or size.
    """
    settings = dict(section)
    name = settings.pop("name", None)
    path = settings.pop("path", None)
    for named, value in (("name", name), ("path", path)):
        require(value is None or isinstance(value, str), f"{key}.{named} must be a text, not {value!r}.")
    if path is None:
        require(name in REGISTRY, f"Unknown {key}.name {name!r}: {nearest(name, REGISTRY)}")
        return _make_algorithm(REGISTRY[name], settings, key)
    cls = load_object(path, f"{key}.path")
    require(
        isinstance(cls, type) and issubclass(cls, Algorithm),
        f"{key}.path={path} is not a subclass of algorithms.Algorithm.",
    )
    # Ray's workers cannot import the user's file by name.
    cloudpickle.register_pickle_by_value(sys.modules[cls.__module__])
    return _make_algorithm(cls, settings, key)


def settings_of(algorithm: Algorithm, section: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of an algorithm as a config section, so that the resolved config holds every number that
    enters the update. `section` is the one that it was made from, or empty for an instance."""
    if section.get("path"):
        found: dict[str, Any] = {"path": section["path"]}
    else:
        found = {"name": algorithm.name}
    for field in _fields_of(type(algorithm)).values():
        value = getattr(algorithm, field.name)
        if isinstance(value, Algorithm):
            value = settings_of(value, section.get(field.name, {}))
        elif isinstance(value, Schedule):
            value = dataclasses.asdict(value)
        found[field.name] = value
    return found


def _make_algorithm(cls: type[Algorithm], settings: Mapping[str, Any], key: str) -> Algorithm:
    title = getattr(cls, "name", cls.__name__)
    algorithm = _construct(cls, title, settings, key)
    check_terms(algorithm, key)
    return algorithm


def check_terms(algorithm: Algorithm, key: str = "algorithm") -> None:
    """Raises UserError if the terms of an algorithm cannot be made, or if their names are not allowed."""
    try:
        _ = algorithm.needs  # makes the terms
    except (ValueError, TypeError, NotImplementedError) as error:
        raise _misfit(key, getattr(algorithm, "name", type(algorithm).__name__), error) from error


def _construct(cls: type[Any], title: str, settings: Mapping[str, Any], key: str) -> Any:
    """An instance of a dataclass from its fields in the config; `title` is what messages call it."""
    fields = _fields_of(cls)
    hint = "" if fields else "it has no settings."
    values = {}
    for name, value in settings.items():
        require(
            name in fields,
            f"Unknown config key '{key}.{name}' for {title}: {hint or nearest(name, fields)}",
        )
        values[name] = _value_of(fields[name], value, f"{key}.{name}")
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise _misfit(key, title, error) from error


def _misfit(key: str, title: str, error: Exception) -> UserError:
    return UserError(f"The settings of {key} do not fit {title}: {error}.")


def _fields_of(cls: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    """Of a dataclass; any other class has no settings."""
    if not dataclasses.is_dataclass(cls):
        return {}
    return {field.name: field for field in dataclasses.fields(cls)}


def _value_of(field: dataclasses.Field[Any], value: Any, key: str) -> Any:
    """The value of a field: nested keys become a schedule or an algorithm, anything else is checked."""
    if not isinstance(value, Mapping):
        _check_type(field, value, key)
        return value
    if field.type is Schedule:
        return _construct(Schedule, Schedule.__name__, value, key)
    return make_algorithm(value, key)


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
    names = wanted.replace(" ", "").split("|")
    allowed = [kind for name in names for kind in TYPES_BY_NAME.get(name, ())]
    if not allowed or (value is None and "None" in names):
        return  # types that are not in the table, such as Literal, are checked by the algorithm itself
    is_bool = isinstance(value, bool)  # which Python counts as an int
    require(
        isinstance(value, tuple(allowed)) and (bool in allowed or not is_bool),
        f"Wrong value for '{key}': {value!r} is not of type {wanted}.",
    )
