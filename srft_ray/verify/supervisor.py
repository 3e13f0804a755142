"""The process beside a `VerifierPool`: it forks the workers that judge, times every item, kills and re-forks.

Only the workers ever look at a response; the supervisor relays bytes, so nothing in a response can hang or crash it. It has
one thread, so forking is safe, and imports of its own: multiprocessing's fork server would have every new worker import
the owner's `__main__`, which in a Ray actor is Ray itself.
"""

import ctypes
import logging
import math
import os
import pickle
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from srft_ray.errors import UserError
from srft_ray.verify.verifier import Verdict, as_verdict, resolve

PR_SET_PDEATHSIG = 1
MAX_ITEMS = 1_000  # then a worker is replaced: what a verifier leaks must not add up to the memory limit
TIMEOUT, CRASH = (
    pickle.dumps(Verdict(verdict, 0.0, None)) for verdict in ("timeout", "error")
)  # a crash: the worker died under the item


class Worker:
    """A forked process that judges one item at a time, and its successors."""

    def __init__(self, verifier: Callable, timeout_s: float, memory_mb: int) -> None:
        self.verifier, self.timeout_s, self.memory_mb = verifier, timeout_s, memory_mb
        self.fork()

    def fork(self) -> None:
        """Start the process, as the leader of a process group so that what a verifier starts dies with it."""
        supervisor, (self.conn, theirs) = os.getpid(), Pipe()
        self.pid, self.items = os.fork(), 0
        if self.pid == 0:
            try:
                self.conn.close()
                confine(supervisor, self.memory_mb)
                serve(theirs, self.verifier)
            finally:
                os._exit(1)
        os.setpgid(self.pid, self.pid)
        theirs.close()

    def kill(self) -> None:
        """End the process and its group."""
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.conn.close()

    def start(self, index: int, job: bytes) -> None:
        """Send the item at `index` and start its clock."""
        if self.items == MAX_ITEMS or self.conn.poll():  # readable without a question: it died idle
            self.kill()
            self.fork()
        self.conn.send_bytes(job)
        self.items += 1
        self.index, self.deadline = index, time.monotonic() + self.timeout_s

    def reply(self, readable: bool) -> bytes | None:
        """The pickled verdict on the item, or None while it has time left."""
        try:
            if readable:
                return self.conn.recv_bytes()
            if time.monotonic() < self.deadline:
                return None
            failure = TIMEOUT
        except (EOFError, OSError):
            failure = CRASH
        self.kill()
        self.fork()
        return failure


def keep(owner: Connection) -> None:
    """Answer the owner's requests, each a list of pickled items, until the owner is gone (EOFError)."""
    owner_pid = os.getppid()
    name, path, timeout_s, num_workers, memory_mb = owner.recv()
    try:
        verifier = resolve(name, path)
    except UserError as error:
        owner.recv()
        return owner.send(str(error))
    if not path:
        getattr(sys.modules[verifier.__module__], "warm_up", lambda: None)()
    workers = [Worker(verifier, timeout_s, memory_mb) for _ in range(num_workers)]
    try:
        while True:
            while owner not in wait_for([owner], math.inf, owner_pid):
                pass
            owner.send(judge(owner.recv(), workers, owner, owner_pid))
    finally:
        for worker in workers:
            worker.kill()


def judge(jobs: list[bytes], workers: list[Worker], owner: Connection, owner_pid: int) -> list[bytes]:
    """Give every idle worker the next item until all have a reply; one that fails costs its own item only. A worker that dies
    may have been killed from outside, so its item has a second try."""
    replies, waiting, idle, busy = [b""] * len(jobs), deque(enumerate(jobs)), list(workers), []
    crashed = set()
    while waiting or busy:
        while waiting and idle:
            busy.append(idle.pop())
            busy[-1].start(*waiting.popleft())
        until = min(worker.deadline for worker in busy)
        readable = wait_for([owner, *(worker.conn for worker in busy)], until, owner_pid)
        if owner in readable:
            raise EOFError("the owner closed the connection")
        for worker in list(busy):
            reply = worker.reply(worker.conn in readable)
            if reply is not None:
                if reply is CRASH and worker.index not in crashed:
                    crashed.add(worker.index)
                    waiting.appendleft((worker.index, jobs[worker.index]))
                replies[worker.index] = reply
                busy.remove(worker)
                idle.append(worker)
    return replies


def wait_for(conns: list[Connection], until: float, owner_pid: int) -> list:
    """Those of `conns` that are readable, after half a second or at `until` at the latest."""
    readable = wait(conns, max(0.0, min(0.5, until - time.monotonic())))
    if os.getppid() != owner_pid:  # a process that the owner forked may hold the connection open for ever
        raise EOFError("the owner died")
    return readable


def confine(supervisor: int, memory_mb: int) -> None:
    """Die with the supervisor, leave no core file, take at most `memory_mb` on top of what the imports have taken."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(1)
    with open("/proc/self/statm") as statm:
        limit = int(statm.read().split()[0]) * resource.getpagesize() + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def serve(conn: Connection, verifier: Callable) -> None:
    """Answer each item with its pickled verdict."""
    reported = False
    while True:
        job = conn.recv_bytes()
        try:
            verdict = as_verdict(verifier(*pickle.loads(job)))
        except MemoryError:
            raise  # and be replaced: what memory is left may not do for the next item
        except Exception:
            if not reported:
                logging.exception("the verifier raised; this worker's further errors are only counted")
            reported, verdict = True, Verdict("error", 0.0, None)
        conn.send_bytes(pickle.dumps(verdict))


if __name__ == "__main__":
    with suppress(EOFError, ConnectionError):
        keep(Connection(int(sys.argv[1])))
