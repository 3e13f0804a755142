"""What stands for a fork, `client.py SCRIPT ARGUMENT…`: it has the fork server make the process, and ends
when that does.

For a worker Ray's raylet started this process (`ray_worker`); the worker tells it its own number. Where the
server has ended, or has another environment, this process becomes the worker itself, as it would be without
the server. A file by itself that imports light modules only, because each worker waits for it.
"""

import contextlib
import hashlib
import json
import os
import resource
import select
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VARIABLE = "SRFT_RAY_FORK_SERVER"  # of the environment: the folder of the server
BASE = "base"  # name of the socket of the process that all others are forked from
LENGTH = 8  # bytes of the number before a message
# Variables that no module reads when it is imported: they may differ between forks of one process.
IGNORED_PREFIXES = ("SRFT_", "PYTEST_")
IGNORED = frozenset(
    (
        "_",
        "COLUMNS",
        "LINES",
        "OLDPWD",
        "PS1",
        "PWD",
        "PYTHONBREAKPOINT",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S",
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S",
        "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC",
        "SHLVL",
        "SPT_NOENV",
        "TORCHINDUCTOR_CACHE_DIR",
    )
)
LIMITS = (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)
FAILED = 1


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What Ray and other modules may read when they are imported."""
    return {
        name: value
        for name, value in environment.items()
        if name not in IGNORED and not name.startswith(IGNORED_PREFIXES)
    }


def template_name(environment: Mapping[str, str]) -> str:
    """Name of the socket of the process that has this environment."""
    return hashlib.sha256(json.dumps(settings(environment), sort_keys=True).encode()).hexdigest()[:32]


def send(channel: socket.socket, message: Any, descriptors: tuple[int, ...] = ()) -> None:
    """Sends a message, and descriptors that the receiver gets copies of."""
    data = json.dumps(message).encode()
    socket.send_fds(channel, [len(data).to_bytes(LENGTH, "big")], descriptors)
    channel.sendall(data)


def receive(channel: socket.socket, descriptors: int = 0) -> tuple[Any, list[int]]:
    """The next message and its descriptors, at most so many.

    Raises:
        ConnectionError: the other side has ended.
    """
    head, found, _, _ = socket.recv_fds(channel, LENGTH, descriptors)
    head += _exactly(channel, LENGTH - len(head))
    return json.loads(_exactly(channel, int.from_bytes(head, "big"))), list(found)


def _exactly(channel: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = channel.recv(length - len(data))
        if not piece:
            raise ConnectionError("the fork server has ended")
        data += piece
    return data


def listening(address: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))
    listener.listen(1024)
    return listener


def ask(folder: Path, name: str, request: Any, descriptors: tuple[int, ...] = ()) -> socket.socket:
    """The connection to the process that listens at the socket `name`, after the request."""
    channel = socket.socket(socket.AF_UNIX)
    channel.connect(str(folder / name))
    send(channel, request, descriptors)
    return channel


def start(folder: Path, arguments: list[str], path: list[str], group: int) -> tuple[int, socket.socket]:
    """The number of the process that was forked for this one, and the connection that tells its end.

    Args:
        folder: of the server.
        arguments: a script and its arguments.
        path: of the modules that the script may import; empty for that of the server and the script's folder.
        group: process group that the fork joins; 0 for one of its own.

    Raises:
        OSError: there is no server, or none for this environment.
    """
    environment = dict(os.environ)
    name = template_name(environment)
    os.umask(mask := os.umask(0))
    request = {
        "arguments": arguments,
        "path": path,
        "group": group,
        "environment": environment,
        "folder": os.getcwd(),
        "mask": mask,
        "cores": sorted(os.sched_getaffinity(0)),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "oom_score": Path("/proc/self/oom_score_adj").read_text(),
        "limits": [(limit, *resource.getrlimit(limit)) for limit in LIMITS],
    }
    try:
        channel = ask(folder, name, request, (0, 1, 2))
    except (FileNotFoundError, ConnectionRefusedError):  # the first worker with this environment
        receive(ask(folder, BASE, environment))
        channel = ask(folder, name, request, (0, 1, 2))
    return receive(channel)[0], channel


def exit_code(pid: int, channel: socket.socket) -> int:
    """Waits for the end of the worker."""
    try:
        return os.waitstatus_to_exitcode(receive(channel)[0])
    except ConnectionError:  # nobody tells it any more
        with contextlib.suppress(ProcessLookupError):
            select.select([os.pidfd_open(pid)], [], [])
        return FAILED


def main() -> None:
    arguments = sys.argv[1:]
    try:
        worker = start(Path(os.environ[VARIABLE]), arguments, [], os.getpgid(0))
    except (OSError, KeyError):
        os.execv(sys.executable, [sys.executable, *arguments])
    sys.exit(exit_code(*worker) % 256)


if __name__ == "__main__":
    main()
