"""From the config's `verifier.name` or `verifier.path` to a function."""
import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srft_ray.errors import UserError

BUILT_IN = {"math": "srft_ray.verify.math_verifier", "tasks": "srft_ray.verify.tasks_verifier"}


def resolve(name: str, path: str | None = None) -> Callable[[str, str, dict], Any]:
    """The verifier called `name` or, where `path` is given, the user's own ("file.py:function"); else UserError."""
    if path:
        return _with_metadata(_from_file(path), path)
    if name not in BUILT_IN:
        nearest = difflib.get_close_matches(name, BUILT_IN, n=1, cutoff=0.0)[0]
        raise UserError(f"verifier.name: there is no verifier {name!r}, did you mean {nearest!r}? "
                        f"(one of {', '.join(BUILT_IN)}, or set verifier.path to your own file.py:function)")
    return importlib.import_module(BUILT_IN[name]).verify


def _from_file(path: str) -> Callable:
    file, _, attribute = path.rpartition(":")
    if not file.endswith(".py") or not Path(file).is_file():
        raise UserError(f"verifier.path: {path!r} must be file.py:function, and {file!r} is not a file in {Path.cwd()}")
    spec = importlib.util.spec_from_file_location(f"srft_user_verifier_{Path(file).stem}", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"verifier.path: importing {file} failed with {type(error).__name__}: {error}") from error
    if not callable(getattr(module, attribute, None)):
        raise UserError(f"verifier.path: {file} has no function {attribute!r}")
    return getattr(module, attribute)


def _with_metadata(function: Callable, path: str) -> Callable[[str, str, dict], Any]:
    signature = inspect.signature(function)
    for count in (3, 2):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return function if count == 3 else lambda response, reference, metadata: function(response, reference)
    raise UserError(f"verifier.path: {path} must take (response, reference, metadata) or (response, reference)")
