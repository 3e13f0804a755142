"""Objects of the user's own, named as `file.py:name`."""
import importlib.util
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from srft_ray.errors import UserError


def load_object(spec: str, key: str) -> Any:
    """The object that `file.py:name` names; `key` is the config key it was given in.

    Raises:
        UserError: the file or the name is missing, or the file cannot be imported.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file).expanduser()
    if not file or not path.is_file():
        raise UserError(f"{key}={spec}: file {file or spec} does not exist; name it as file.py:name.")
    module = _load_module(str(path.absolute()), key)
    if not hasattr(module, name):
        found = [n for n in vars(module) if not n.startswith("_")]
        raise UserError(f"{key}={spec}: {path} has no '{name}'; it defines {', '.join(found) or 'nothing'}.")
    return getattr(module, name)


@lru_cache
def _load_module(path: str, key: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"srft_ray_plugin_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{key}: {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
