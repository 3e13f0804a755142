"""The `algorithm` section of the config -> an algorithm."""
import dataclasses
from collections.abc import Mapping
from typing import Any

from algorithms import REGISTRY, Algorithm
from srft_ray.config import nearest
from srft_ray.errors import UserError
from srft_ray.plugins import load_object


def make_algorithm(section: Mapping[str, Any], key: str = "algorithm") -> Algorithm:
    """`name` (registered) or `path` (file.py:Class), and the algorithm's own fields.

    Raises:
        UserError: unknown name or field (naming the nearest), wrong type or value.
    """
    settings = dict(section)
    name, path = settings.pop("name", None), settings.pop("path", None)
    if path is not None:
        cls = load_object(path, f"{key}.path")
        if not (isinstance(cls, type) and issubclass(cls, Algorithm)):
            raise UserError(f"{key}.path={path} is not a subclass of algorithms.Algorithm.")
    elif name in REGISTRY:
        cls = REGISTRY[name]
    else:
        raise UserError(f"Unknown {key}.name {name!r}: {nearest(str(name), list(REGISTRY))}")
    return _construct(cls, settings, key)


def _construct(cls: type[Algorithm], settings: dict[str, Any], key: str) -> Algorithm:
    fields = {f.name: f for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    title = getattr(cls, "name", cls.__name__)
    for name, value in settings.items():
        if name not in fields:
            raise UserError(f"Unknown config key '{key}.{name}' for {title}: {nearest(name, list(fields)) if fields else 'it has no settings.'}")
        if isinstance(value, Mapping):
            settings[name] = make_algorithm(value, f"{key}.{name}")
        else:
            _check_type(fields[name], value, f"{key}.{name}")
    try:
        algorithm = cls(**settings)
        if cls.terms is not Algorithm.terms and not hasattr(algorithm, "first"):
            algorithm.terms()
    except (ValueError, TypeError) as error:
        raise UserError(f"The settings of {key} do not fit {title}: {error}.") from error
    return algorithm


def _check_type(field: dataclasses.Field[Any], value: Any, key: str) -> None:
    wanted = str(field.type if isinstance(field.type, str) else getattr(field.type, "__name__", field.type))
    if "Algorithm" in wanted:
        raise UserError(f"Wrong value for '{key}': {value!r} must be the keys of an algorithm, such as {key}.name={value}.")
    kinds = {"float": (int, float), "int": (int,), "str": (str,), "bool": (bool,)}
    allowed = tuple(kind for name in wanted.replace(" ", "").split("|") for kind in kinds.get(name, ()))
    if value is None and "None" in wanted:
        return
    if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)):
        raise UserError(f"Wrong value for '{key}': {value!r} is not of type {wanted}.")
