"""The owner's side of the verifier processes."""

import math
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing import Pipe
from typing import Any

from srft_ray.errors import UserError
from srft_ray.verify.verifier import Item, Verdict

TRIES = 3
START_S = 120.0  # for the supervisor to start: a verifier's imports


class VerifierFailed(RuntimeError):
    """The verifier processes themselves fail, whatever they are given."""


class VerifierPool:
    """Judges responses in worker processes of its own, each item bounded by `timeout_s` and `memory_mb`.

    What hangs costs one `timeout`, what crashes or raises one `error`; the other items are judged as if it had not been
    there. Usable from any thread, one call at a time. The processes die with the owner, however it dies. `memory_mb` is
    per worker, on top of what the verifier's imports take.
    """

    def __init__(
        self,
        name: str,
        path: str | None = None,
        timeout_s: float = 2.0,
        num_workers: int = 1,
        memory_mb: int = 2048,
    ) -> None:
        self._settings, self._lock = (name, path, timeout_s, num_workers, memory_mb), threading.Lock()
        self._start()

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in order. Raises UserError where `resolve` would; starts anew after `close`.

        Processes that die or hang are replaced and asked again.

        Raises:
            VerifierFailed: they died or hung TRIES times in a row.
        """
        jobs = [_pack(item) for item in items]
        with self._lock:
            for _ in range(TRIES):
                if self._conn.closed:
                    self._start()
                try:
                    replies = self._ask(jobs)
                    break
                except (EOFError, OSError, TimeoutError) as error:
                    failure = error
                    self._stop()
                except BaseException:
                    self._stop()  # an interrupted request must not leave its reply to the next one
                    raise
            else:
                raise VerifierFailed(
                    f"the verifier processes died or hung {TRIES} times in a row: {failure or type(failure).__name__}"
                )
        if isinstance(replies, str):
            raise UserError(replies)
        return [pickle.loads(reply) for reply in replies]

    def _ask(self, jobs: list[bytes]) -> Any:
        """The supervisor bounds every item, so that an answer that takes longer than all of them is none."""
        _, _, timeout_s, num_workers, _ = self._settings
        deadline_s = START_S + 2 * timeout_s * math.ceil(len(jobs) / num_workers)
        self._conn.send(jobs)
        if not self._conn.poll(deadline_s):
            raise TimeoutError(f"no answer for {deadline_s:.0f} s")
        return self._conn.recv()

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self._stop()

    def _start(self) -> None:
        self._conn, theirs = Pipe()
        # -P and this process's search path: there can be imported what can be imported here, and nothing else
        command = [sys.executable, "-P", "-m", "srft_ray.verify.supervisor", str(theirs.fileno())]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        }
        self._process = subprocess.Popen(
            command,
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # Ctrl-C is the owner's
        theirs.close()
        with socket.socket(
            fileno=os.dup(self._conn.fileno())
        ) as both_ways:  # a supervisor that is stopped must not block us
            both_ways.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(START_S), 0))
        self._conn.send(self._settings)

    def _stop(self) -> None:
        self._conn.close()
        self._process.kill()  # its workers die with it
        self._process.wait()


def _pack(item: Item) -> bytes:
    try:
        return pickle.dumps((item.response, item.reference, item.metadata))
    except Exception:
        return b""  # no worker can unpickle this: an error verdict for this item alone
