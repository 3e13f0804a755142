"""A command in `srft-ray warm` goes on in a fork of a process that has imported the libraries already."""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from srft_ray.fork_server.client import exit_code, start

# Those that import the libraries.
COMMANDS = frozenset(("train", "evaluate", "benchmark", "compare", "scale"))
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def in_fork(words: Sequence[str], folder: str) -> int | None:
    """Runs the command with these words in a fork, which gets this process's signals; the exit code.

    None, and nothing was run, if the command needs no libraries, or the server in `folder` has ended or was
    started with another environment.
    """
    if not words or words[0] not in COMMANDS:
        return None
    script = Path(__file__).with_name("cli.py")
    try:
        # In a group of its own: the terminal would send it Ctrl-C too.
        pid, channel = start(Path(folder), [str(script), *words], sys.path, 0)
    except OSError:
        return None

    def pass_on(number: int, _: object) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    code = exit_code(pid, channel)
    return 128 - code if code < 0 else code
