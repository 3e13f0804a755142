"""The process that calls the verifier: one item at a time, within limits of its own."""

import ctypes
import logging
import os
import pickle
import resource
import signal
from multiprocessing.connection import Connection

from srft_ray.verify.verifier import Verdict, Verify, as_verdict

PR_SET_PDEATHSIG = 1


def run_worker(conn: Connection, verifier: Verify, supervisor: int, memory_mb: int) -> None:
    """Verify what arrives on `conn` until it is closed. Called in a forked process, which it never leaves."""
    try:
        confine(supervisor, memory_mb)
        serve(conn, verifier)
    finally:
        os._exit(1)


def confine(supervisor: int, memory_mb: int) -> None:
    """Die with the supervisor, leave no core file, take at most `memory_mb` more than the imports took."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The supervisor may have died before the line above.
    if os.getppid() != supervisor:
        os._exit(1)
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    limit = used + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def serve(conn: Connection, verifier: Verify) -> None:
    """Answer each item with its pickled verdict."""
    reported = False
    while True:
        question = conn.recv_bytes()
        try:
            verdict = as_verdict(verifier(*pickle.loads(question)))
        except MemoryError:
            raise  # and be replaced: what memory is left may not do for the next item
        except Exception:
            if not reported:
                logging.exception("the verifier raised; this worker's further errors are only counted")
            reported = True
            verdict = Verdict("error", 0.0, None)
        conn.send_bytes(pickle.dumps(verdict))
