"""A Ray whose workers are forks."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from srft_ray.fork_server.client import VARIABLE

SCRIPT = Path(__file__).resolve().with_name("ray_worker.py")


@contextmanager
def workers_are_forks(folder: Path) -> Iterator[None]:
    """A Ray that is started in the context has the fork server in that folder make its workers.

    Ray's own way to say what runs a worker is `py_executable` of a runtime environment. Its raylet then runs
    a script first that imports Ray.
    """
    from ray._private import parameter

    original = parameter.RayParams
    parameter.RayParams = functools.partial(original, worker_path=str(SCRIPT), setup_worker_path=str(SCRIPT))
    os.environ[VARIABLE] = str(folder)  # for the raylet, and so for its workers
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        parameter.RayParams = original
