"""The process beside a `VerifierPool`: it forks the workers, hands out items, times each, and replaces workers.

Only the workers look at a response; the supervisor passes bytes on, so that nothing in a response can hang or
crash it. It has one thread, so that forking is safe, and few imports: multiprocessing's fork server would have
every new worker import the owner's `__main__`, which in a Ray actor is Ray itself.
"""

import math
import os
import pickle
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from srft_ray.errors import UserError
from srft_ray.verify.settings import Settings, load_verifier
from srft_ray.verify.verifier import Verdict, Verify
from srft_ray.verify.worker import run_worker

MAX_ITEMS = 1_000  # then a worker is replaced: what a verifier leaks must not add up to the memory limit
POLL_INTERVAL_S = 0.5  # between two looks at whether the owner lives
TIMEOUT = pickle.dumps(Verdict("timeout", 0.0, None))
CRASH = pickle.dumps(Verdict("error", 0.0, None))  # the worker died under the item


class Worker:
    """The supervisor's side of one worker process and of its successors."""

    def __init__(self, verifier: Verify, settings: Settings) -> None:
        self.verifier = verifier
        self.settings = settings
        self.index = -1  # of the item in hand
        self.deadline = math.inf  # of the item in hand
        self.fork()

    def fork(self) -> None:
        """Start the process, as the leader of a process group: what a verifier starts dies with it."""
        supervisor = os.getpid()
        self.conn, theirs = Pipe()
        self.items = 0
        self.pid = os.fork()
        if self.pid == 0:
            self.conn.close()
            run_worker(theirs, self.verifier, supervisor, self.settings.memory_mb)
        os.setpgid(self.pid, self.pid)
        theirs.close()

    def kill(self) -> None:
        """End the process and its group."""
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.conn.close()

    def replace(self) -> None:
        self.kill()
        self.fork()

    def start(self, index: int, question: bytes) -> None:
        """Send the item at `index` and start its clock."""
        died_idle = self.conn.poll()  # readable without a question
        if died_idle or self.items == MAX_ITEMS:
            self.replace()
        self.conn.send_bytes(question)
        self.items += 1
        self.index = index
        self.deadline = time.monotonic() + self.settings.timeout_s

    def reply(self, readable: bool) -> bytes | None:
        """The pickled verdict on the item in hand, or None while it has time left."""
        try:
            if readable:
                return self.conn.recv_bytes()
            if time.monotonic() < self.deadline:
                return None
            failure = TIMEOUT
        except (EOFError, OSError):
            failure = CRASH
        self.replace()
        return failure


class Request:
    """The items of one request: which wait, which are with a worker, and the replies so far."""

    def __init__(self, questions: list[bytes], workers: list[Worker]) -> None:
        self.questions = questions
        self.replies = [b""] * len(questions)
        self.waiting = deque(range(len(questions)))
        self.idle = list(workers)
        self.busy: list[Worker] = []
        self.crashed = set[int]()

    def hand_out(self) -> None:
        """Give every idle worker an item."""
        while self.waiting and self.idle:
            worker = self.idle.pop()
            self.busy.append(worker)
            index = self.waiting.popleft()
            worker.start(index, self.questions[index])

    def collect(self, readable: list[Connection]) -> None:
        """Take the replies that are there, and the verdicts on items whose time is up."""
        for worker in list(self.busy):
            reply = worker.reply(worker.conn in readable)
            if reply is None:
                continue
            # A worker that dies may have been killed from outside, so its item has a second try.
            if reply is CRASH and worker.index not in self.crashed:
                self.crashed.add(worker.index)
                self.waiting.appendleft(worker.index)
            self.replies[worker.index] = reply
            self.busy.remove(worker)
            self.idle.append(worker)


class Owner:
    """The process that holds the `VerifierPool`, as the supervisor sees it."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.pid = os.getppid()

    def wait(self, conns: list[Connection], until: float) -> list[Connection]:
        """The readable ones of `conns` and the owner's, after POLL_INTERVAL_S or at `until` at the latest.

        Raises:
            EOFError: the owner died. A process that it forked may hold the connection open for ever.
        """
        timeout_s = max(0.0, min(POLL_INTERVAL_S, until - time.monotonic()))
        readable = wait([self.conn, *conns], timeout_s)
        if os.getppid() != self.pid:
            raise EOFError("the owner died")
        return readable


def supervise(conn: Connection) -> None:
    """Answer the owner's requests, each a list of pickled items, until the owner is gone (EOFError)."""
    owner = Owner(conn)
    settings: Settings = conn.recv()
    try:
        verifier = load_verifier(settings)
    except UserError as error:
        conn.recv()
        return conn.send(str(error))
    # Before the fork, so that each worker's first item takes no longer than the next.
    if settings.name and not (settings.path or settings.function):
        getattr(sys.modules[verifier.__module__], "warm_up", lambda: None)()
    workers = [Worker(verifier, settings) for _ in range(settings.num_workers)]
    try:
        while True:
            while not owner.wait([], math.inf):
                pass
            conn.send(verify(conn.recv(), workers, owner))
    finally:
        for worker in workers:
            worker.kill()


def verify(questions: list[bytes], workers: list[Worker], owner: Owner) -> list[bytes]:
    """One reply per question, in order. What fails under one item is that item's verdict and no other's."""
    request = Request(questions, workers)
    while request.waiting or request.busy:
        request.hand_out()
        until = min(worker.deadline for worker in request.busy)
        readable = owner.wait([worker.conn for worker in request.busy], until)
        # The owner asks nothing while it waits: readable means that it closed the connection.
        if owner.conn in readable:
            raise EOFError("the owner closed the connection")
        request.collect(readable)
    return request.replies


if __name__ == "__main__":
    with suppress(EOFError, ConnectionError):
        supervise(Connection(int(sys.argv[1])))
