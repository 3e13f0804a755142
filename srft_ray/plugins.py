"""Objects of the user's own, named as `file.py:name`."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from srft_ray.errors import UserError


def load_object(spec: str, key: str, kind: str = "") -> Any:
    """What `file.py:name` names, a class or a function; `key` is the config key it was given in. UserError
    where it cannot be had."""
    file, _, name = spec.rpartition(":")
    wanted = kind or "name"
    if not file and Path(spec).expanduser().is_file():
        raise UserError(f"{key}={spec}: name the {wanted} in the file too, as {spec}:{wanted}.")
    path = Path(file).expanduser()
    if path.suffix != ".py" or not path.is_file():
        raise UserError(
            f"{key}={spec}: file {file or spec} does not exist: {file!r} is not a file in {Path.cwd()}; name "
            f"it as file.py:{wanted}."
        )
    source = importlib.util.spec_from_file_location(f"srft_ray_plugin_{path.stem}", path.absolute())
    module = sys.modules[source.name] = importlib.util.module_from_spec(
        source
    )  # dataclasses look their module up
    try:
        source.loader.exec_module(module)
    except Exception as error:
        failed = "cannot be imported:" if isinstance(error, ImportError) else "failed with"
        raise UserError(f"{key}: {path} {failed} {type(error).__name__}: {error}") from error
    if not callable(getattr(module, name, None)):
        found = [n for n in vars(module) if not n.startswith("_")]
        wanted = f"{kind} '{name}'".strip()
        raise UserError(f"{key}={spec}: {path} has no {wanted}; it defines {', '.join(found) or 'nothing'}.")
    return getattr(module, name)
