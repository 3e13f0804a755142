"""What the raylet of a Ray that was started with the fork server runs in the place of Ray's own scripts:
`ray_worker.py ARGUMENT…` for a worker, and `ray_worker.py ray_worker.py ARGUMENT…` for one that has a runtime
environment, which is set up first.

Ray's script for the latter imports Ray, which takes 0.3 s before each worker; and Ray Train gives all of its
actors a runtime environment, of variables.
"""

import argparse
import json
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from client import main

WORKERS = Path(find_spec("ray").origin).parent / "_private/workers"


def is_simple(context: dict[str, Any], language: str) -> bool:
    """Whether a runtime environment consists of environment variables only."""
    others = {name: value for name, value in context.items() if name != "env_vars"}
    same = others.pop("py_executable", sys.executable) in (None, sys.executable)
    return language == "PYTHON" and same and not any(others.values())


def set_up(variables: dict[str, str]) -> None:
    """Sets variables; `${X}` in a value is the value of X, empty if there is none."""
    for name, value in variables.items():
        os.environ[name] = re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))


def set_up_as_ray() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language", default="")
    options, others = parser.parse_known_args()
    context = json.loads(options.serialized_runtime_env_context)
    if not is_simple(context, options.language):
        os.execv(sys.executable, [sys.executable, str(WORKERS / "setup_worker.py"), *sys.argv[1:]])
    set_up(context.get("env_vars") or {})
    sys.argv[1:] = others[others.index(__file__) + 1 :]


if __name__ == "__main__":
    if __file__ in sys.argv[1:]:
        set_up_as_ray()
    sys.argv.insert(1, str(WORKERS / "default_worker.py"))
    main()
