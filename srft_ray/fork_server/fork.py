"""What a fork does to become a worker, or a command."""

import contextlib
import gc
import os
import resource
import runpy
import sys
from pathlib import Path
from typing import Any


def work_as(request: dict[str, Any], descriptors: list[int]) -> None:
    """This process becomes what the client would have become.

    Args:
        request: of `client.start`.
        descriptors: standard input, output and error of the client.
    """
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # as Python begins
    try:
        os.setpgid(0, request["group"])  # Ray ends what a worker has started by its group
    except OSError:  # of another session
        os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(request["environment"])
    with contextlib.suppress(OSError, ValueError):
        Path("/proc/self/oom_score_adj").write_text(request["oom_score"])
        for limit in request["limits"]:
            resource.setrlimit(limit[0], tuple(limit[1:]))
    os.setpriority(os.PRIO_PROCESS, 0, request["nice"])
    os.sched_setaffinity(0, request["cores"])
    os.umask(request["mask"])
    os.chdir(request["folder"])
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # other libraries begin anew in a fork by themselves
    gc.enable()
    sys.argv = request["arguments"]
    sys.path[:] = request["path"] or [str(Path(sys.argv[0]).parent), *sys.path]
    runpy.run_path(sys.argv[0], run_name="__main__")
