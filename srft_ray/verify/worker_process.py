"""The supervisor's side of one worker process and of its successors."""

import math
import os
import signal
import socket
import time
from contextlib import suppress
from multiprocessing import Pipe
from typing import NamedTuple

from srft_ray.verify import sandbox
from srft_ray.verify.directories import WorkerDirectory
from srft_ray.verify.processes import ChildrenOf, descendants
from srft_ray.verify.replies import ERROR, MAX_REPLY_BYTES, TIMEOUT, encode
from srft_ray.verify.settings import Settings, set_socket_timeouts
from srft_ray.verify.verifier import Verify
from srft_ray.verify.worker import NONCE_BYTES, Ends, run_worker

MAX_PROCESSES = 64  # below one worker


class Outcome(NamedTuple):
    """What came of an item."""

    reply: bytes  # a verdict, encoded
    crashed: bool = False  # the worker died, perhaps killed from outside, or sent what is no reply


TIMED_OUT = Outcome(encode(TIMEOUT))
CRASHED = Outcome(encode(ERROR), crashed=True)
FORBIDDEN = Outcome(encode(ERROR))


class WorkerProcess:
    """Forks the process, gives it one item at a time, ends it when it fails or leaves something behind."""

    def __init__(self, verifier: Verify, settings: Settings, namespaces: bool, output: int) -> None:
        self.verifier = verifier
        self.settings = settings
        self.namespaces = namespaces
        self.output = output
        self.directory = WorkerDirectory(settings.directory, namespaces)
        self.index = -1  # of the item in hand
        self.deadline = math.inf  # of the item in hand
        self.nonce = b""
        self.pid = 0

    def fork(self, not_for_worker: list[int]) -> None:
        """Start the process. `not_for_worker` are files of the supervisor that it must not hold."""
        if not self.directory.usable:
            self.directory.close()
            self.directory = WorkerDirectory(self.settings.directory, self.namespaces)
        self.questions, questions = Pipe()
        self.replies, replies = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        set_socket_timeouts(self.questions.fileno(), max(1.0, self.settings.timeout_s))
        self.items = 0
        self.pid = self._fork_in_namespace() if self.namespaces else os.fork()
        if self.pid == 0:
            for fd in [*not_for_worker, self.questions.fileno(), self.replies.fileno()]:
                os.close(fd)
            ends = Ends(questions, replies, self.output)
            run_worker(ends, self.verifier, self.settings, self.directory.path, self.namespaces)
        # A group of its own, so that one signal reaches what the verifier starts, unless it detaches it.
        os.setpgid(self.pid, self.pid)
        questions.close()
        replies.close()
        self.children = ChildrenOf(self.pid)
        self.questions.send_bytes(b"")

    def _fork_in_namespace(self) -> int:
        """Fork a grandchild as first of a process namespace; it becomes a child when its parent ends."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            # Never back into the supervisor's code, whatever fails here.
            try:
                sandbox.enter_process_namespace()
                grandchild = os.fork()
            except OSError:
                os._exit(1)
            if grandchild == 0:
                os.close(reading)
                os.close(writing)
                return 0
            os.write(writing, str(grandchild).encode())
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as file:
            answer = file.read()
        os.waitpid(pid, 0)
        return int(answer)

    def fds(self) -> list[int]:
        """The supervisor's files for this worker."""
        if self.pid == 0:
            return [self.directory.fd]
        return [self.directory.fd, self.questions.fileno(), self.replies.fileno(), *self.children.fds()]

    def kill(self) -> None:
        """End the process, its group, in a process namespace all that it started; remove its files."""
        if self.pid == 0:
            return
        for kill in (os.killpg, os.kill):  # it may have left its group
            with suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.pid = 0
        self.questions.close()
        self.replies.close()
        self.children.close()
        self.directory.empty()

    def is_ready(self) -> bool:
        """Whether it can take an item: it lives, is not worn out, and has said nothing unasked."""
        if self.pid == 0 or self.items >= self.settings.items_per_worker:
            return False
        try:
            self.replies.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def start(self, index: int, question: bytes) -> None:
        """Send the item at `index` and start its clock. OSError where the worker does not read."""
        self.nonce = os.urandom(NONCE_BYTES)
        self.questions.send_bytes(self.nonce + question)
        self.items += 1
        self.index = index
        self.deadline = time.monotonic() + self.settings.timeout_s

    def outcome(self, readable: bool) -> Outcome | None:
        """Of the item in hand; None while it has time left. A worker without a proper reply is ended."""
        if not readable:
            if time.monotonic() < self.deadline:
                return None
            self.kill()
            return TIMED_OUT
        try:
            message = self.replies.recv(MAX_REPLY_BYTES + NONCE_BYTES + 2)
        except OSError:
            message = b""
        head, reply = message[: NONCE_BYTES + 1], message[NONCE_BYTES + 1 :]
        if head[:NONCE_BYTES] != self.nonce or len(reply) > MAX_REPLY_BYTES or b"\n" in reply:
            self.kill()
            return CRASHED
        self._tidy(worn=head[NONCE_BYTES:] != b"0")
        return Outcome(reply)

    def _tidy(self, worn: bool) -> None:
        """End what the item left running, remove the files that it left."""
        try:
            leftovers = self.children.read()
        except OSError:  # it died right after its reply
            leftovers = {self.pid}
        if worn or leftovers or not self.directory.empty():
            self.kill()

    def has_too_many_processes(self) -> bool:
        try:
            return bool(self.children.read()) and len(descendants(self.pid)) > MAX_PROCESSES
        except OSError:
            return False
