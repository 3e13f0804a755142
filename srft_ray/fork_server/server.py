"""The fork server: `server.py SOCKET JOBS MODULES MODULES NAME=VALUE…`. It ends when its standard input does.

Two kinds of processes listen at sockets in one folder. The *base* imports the first modules, which do not
import Ray, with the given variables in its environment, and forks a *template* for each environment that
workers come with: Ray's native library reads its settings from the environment when it is imported, so that
they are right only in a process that has had this environment before. A template imports the second modules,
Ray among them, and forks the workers. Neither imports this library: a worker reads the code of its run when
it starts.

The number of the job is one of these settings. Where jobs follow each other (JOBS is `many`) the template of
one that has ended makes room for that of the next one, which then is there when the job begins.
"""

import contextlib
import gc
import importlib
import os
import selectors
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from client import BASE, ask, listening, receive, send, settings, template_name
from fork import work_as
from ray_imports import import_with_ray

DESCRIPTORS = 3  # standard input, output and error of a worker
REQUEST_S = 10.0  # for a client to send its request
IDLE_S = 2.0  # without workers after which a job has ended
JOB = "RAY_JOB_ID"  # in hexadecimal digits, the lowest byte first
Work = Callable[[], Any]


class Server:
    """Answers each request by a fork.

    Attributes:
        children: the connection that waits for the end of each child, by its number.
    """

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[["Server", socket.socket], Work | None],
        idle_s: float | None = None,
    ) -> None:
        """
        Args:
            answer: makes a fork for a connection; gives the work of the child, in the child.
            idle_s: without children, after there were some, that end the server; None for ever.
        """
        self.children: dict[int, socket.socket] = {}
        self._idle_s = idle_s
        self._had_children = False
        self._listener = listener
        self._answer = answer
        self._ended, self._wake = os.pipe()
        for end in (self._ended, self._wake):
            os.set_blocking(end, False)
        self._selector = selectors.DefaultSelector()
        for source in (listener, self._ended, sys.stdin):
            self._selector.register(source, selectors.EVENT_READ)

    def serve(self) -> Work | None:
        """Returns in children only, with their work; and, without, when the standard input has ended, or the
        server was idle for long enough."""
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while events := self._selector.select(self._patience_s()):
            for key, _ in events:
                if key.fileobj is sys.stdin:
                    return None
                if key.fileobj is self._listener:
                    if work := self._accept():
                        return work
                elif key.fileobj == self._ended:
                    self._reap()
                else:
                    self._kill_child_of(key.fileobj)
        return None

    def _patience_s(self) -> float | None:
        return self._idle_s if self._had_children and not self.children else None

    def fork(self, channel: socket.socket | None = None) -> int:
        """Forks; in the parent `channel` is told the end of the child, and its own end ends the child."""
        pid = os.fork()
        if pid and channel:
            self.children[pid] = channel
            self._had_children = True
            self._selector.register(channel, selectors.EVENT_READ)
        elif not pid:
            self._leave()
        return pid

    def _accept(self) -> Work | None:
        channel, _ = self._listener.accept()
        channel.settimeout(REQUEST_S)
        try:
            return self._answer(self, channel)
        except OSError:  # the client has ended
            self._kill_child_of(channel)
            channel.close()
            return None

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._ended, 4096):
                pass
        with contextlib.suppress(ChildProcessError):
            while (end := os.waitpid(-1, os.WNOHANG))[0]:
                channel = self._forget(end[0])
                if channel:
                    with contextlib.suppress(OSError), channel:
                        send(channel, end[1])

    def _kill_child_of(self, channel: Any) -> None:
        """Who stands for a worker was killed: the worker was meant."""
        for pid in [pid for pid, waiting in self.children.items() if waiting is channel]:
            self._forget(pid)
            channel.close()
            os.kill(pid, signal.SIGKILL)

    def _forget(self, pid: int) -> socket.socket | None:
        channel = self.children.pop(pid, None)
        if channel:
            self._selector.unregister(channel)
        return channel

    def _leave(self) -> None:
        """A child has nothing of what the server waits at."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for channel in (self._listener, *self.children.values()):
            channel.close()
        for end in (self._ended, self._wake):
            os.close(end)


class Base:
    """What answers requests for templates: a request is an environment."""

    def __init__(self, folder: Path, many_jobs: bool, after_ray: Sequence[str]) -> None:
        self.folder = folder
        self._many_jobs = many_jobs
        self._after_ray = after_ray
        self._settings = _without_ray(os.environ)

    def answer(self, server: Server, channel: socket.socket) -> Work | None:
        """The template listens when the reply comes, and imports after that. There is no reply for an
        environment in which the base might have imported something else."""
        with channel:
            environment = receive(channel)[0]
            if _without_ray(environment) != self._settings:
                return None
            address = self.folder / template_name(environment)
            if not _listens(address):
                address.unlink(missing_ok=True)
                listener = listening(address)
                if not server.fork():
                    return lambda: self._template(listener, address, environment)
                listener.close()
            send(channel, {})
        return None

    def _template(self, listener: socket.socket, address: Path, environment: dict[str, str]) -> Work | None:
        os.environ.clear()
        os.environ.update(environment)
        if self._after_ray:
            import_with_ray(self._after_ray)
        gc.freeze()
        one_of_many = self._many_jobs and JOB in environment
        work = Server(listener, answer_template, IDLE_S if one_of_many else None).serve()
        if work is None:
            address.unlink(missing_ok=True)
            if one_of_many:
                with contextlib.suppress(OSError):  # the base has ended too
                    ask(self.folder, BASE, environment | {JOB: _next_job(environment[JOB])})
        return work


def answer_template(server: Server, channel: socket.socket) -> Work | None:
    """A request says which script the worker runs, and how."""
    request, descriptors = receive(channel, DESCRIPTORS)
    pid = server.fork(channel)
    if not pid:
        channel.close()
        return lambda: work_as(request, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    send(channel, pid)
    return None


def _without_ray(environment: Mapping[str, str]) -> dict[str, str]:
    """What modules that do not import Ray may have read."""
    return {name: value for name, value in settings(environment).items() if not name.startswith("RAY_")}


def _next_job(job: str) -> str:
    size = len(job) // 2
    number = int.from_bytes(bytes.fromhex(job), "little") + 1
    return (number % 256**size).to_bytes(size, "little").hex()


def _names(modules: str) -> list[str]:
    return modules.split(",") if modules else []


def _listens(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as channel:
        return channel.connect_ex(str(address)) == 0


def main() -> None:
    _, descriptor, jobs, before_ray, after_ray, *variables = sys.argv
    del sys.path[0]  # the folder of this file; its modules are no modules of workers
    for name in ("client", "fork", "ray_imports"):
        del sys.modules[name]
    listener = socket.socket(fileno=int(descriptor))
    folder = Path(listener.getsockname()).parent
    base = Base(folder, jobs == "many", _names(after_ray))
    server = Server(listener, base.answer)
    for variable in variables:
        os.environ.setdefault(*variable.split("=", 1))
    gc.disable()
    for module in _names(before_ray):
        importlib.import_module(module)
    gc.freeze()  # the garbage collector would write to the memory that forks share
    pid = os.getpid()
    work = server.serve()
    while work:
        work = work()
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
