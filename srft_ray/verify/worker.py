"""The process that calls the verifier, item after item. It runs foreign code: it is not trusted."""

import logging
import os
import pickle
import socket
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

from srft_ray.verify import sandbox
from srft_ray.verify.replies import ERROR, encode
from srft_ray.verify.settings import Settings
from srft_ray.verify.verifier import Verify, as_verdict

NONCE_BYTES = 8  # of each question; a reply without the nonce of its question does not count


@dataclass(frozen=True)
class Ends:
    """What a worker process is left with of its supervisor's files."""

    questions: Connection
    replies: socket.socket  # of packets: the supervisor never waits for the rest of one
    output: int  # for what the verifier prints


def run_worker(ends: Ends, verifier: Verify, settings: Settings, directory: str, namespaces: bool) -> None:
    """Verify until there are no more questions. Called in a forked process, which it never leaves."""
    try:
        os.dup2(ends.output, 1)
        os.dup2(ends.output, 2)
        # The supervisor says when it is this process's parent: its death is to be a signal from then on.
        ends.questions.recv_bytes()
        if namespaces:
            sandbox.settle_process_namespace()
        cpu_s = settings.cpu_s()
        sandbox.confine(directory, settings.memory_mb, cpu_s)
        serve(ends, verifier, cpu_s / 2)
    finally:
        os._exit(1)


def serve(ends: Ends, verifier: Verify, cpu_s: float) -> None:
    """Answer each question with its nonce, whether this worker is worn out, and the verdict."""
    reported = False
    here = os.open(".", os.O_RDONLY)
    while True:
        question = ends.questions.recv_bytes()
        os.fchdir(here)  # the item before may have left it
        try:
            response, reference, metadata = pickle.loads(question[NONCE_BYTES:])
            reply = encode(as_verdict(verifier(response, reference, metadata)))
        except MemoryError:
            raise  # and be replaced: what memory is left may not do for the next item
        except BaseException:  # SystemExit too is no reason to stop
            if not reported:
                logging.exception("the verifier raised; this worker's further errors are only counted")
            reported = True
            reply = encode(ERROR)
        sys.settrace(None)
        # A program that ran below this process may have changed this process's limits.
        ran_program = sandbox.memory_is_hidden()
        # A thread that goes on would take time from the next items; they need half of the CPU limit.
        worn = ran_program or threading.active_count() > 1 or time.process_time() > cpu_s
        ends.replies.send(question[:NONCE_BYTES] + (b"1" if worn else b"0") + reply)
