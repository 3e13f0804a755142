"""The owner's side of the verifier processes."""

import math
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from srft_ray.errors import UserError
from srft_ray.verify.settings import Settings, pickle_function
from srft_ray.verify.verifier import Item, Verdict

TRIES = 3
START_S = 120.0  # for the supervisor to start: a verifier's imports


class VerifierFailed(RuntimeError):
    """The verifier processes themselves fail, whatever they are given."""


class VerifierPool:
    """Verifies responses in processes of its own; each item is bounded by `timeout_s` and `memory_mb`.

    A response whose verification hangs gets the verdict `timeout`, one whose verification crashes or raises
    gets `error`; nothing else is affected. Usable from any thread, one call at a time. The processes end with
    the owner, however it ends.

    Args:
        name: a built-in verifier, one of `BUILT_IN`, unless one of the next two is given.
        path: the user's own, as "file.py:function".
        function: the user's own, as a Python callable (a lambda too).
        timeout_s: of one item.
        num_workers: items that are verified at the same time.
        memory_mb: per worker, on top of what the verifier's imports take.

    Raises:
        UserError: `function` cannot be sent to another process.
    """

    def __init__(
        self,
        name: str = "",
        path: str | None = None,
        timeout_s: float = 2.0,
        num_workers: int = 1,
        memory_mb: int = 2048,
        function: Callable | None = None,
    ) -> None:
        pickled = None if function is None else pickle_function(function)
        self._settings = Settings(name, path, pickled, timeout_s, num_workers, memory_mb)
        self._lock = threading.Lock()
        self._start()

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in order. Starts the processes again after `close`.

        Processes that die or hang are replaced and asked again.

        Raises:
            UserError: where `resolve` would.
            VerifierFailed: the processes died or hung TRIES times in a row.
        """
        questions = [_pack(item) for item in items]
        with self._lock:
            replies = self._ask_again(questions)
        if isinstance(replies, str):
            raise UserError(replies)
        return [pickle.loads(reply) for reply in replies]

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self._stop()

    def _ask_again(self, questions: list[bytes]) -> list[bytes] | str:
        """The answer of the first try that gets one."""
        for _ in range(TRIES):
            if self._conn.closed:
                self._start()
            try:
                return self._ask(questions)
            except (EOFError, OSError, TimeoutError) as error:
                failure = str(error) or type(error).__name__
                self._stop()
            except BaseException:
                self._stop()  # an interrupted request must not leave its reply to the next one
                raise
        raise VerifierFailed(f"the verifier processes died or hung {TRIES} times in a row: {failure}")

    def _ask(self, questions: list[bytes]) -> list[bytes] | str:
        """One reply per question, or the sentence of a UserError."""
        # The supervisor bounds every item; if it needs longer than all of them together, it hangs.
        rounds = math.ceil(len(questions) / self._settings.num_workers)
        deadline_s = START_S + 2 * self._settings.timeout_s * rounds
        self._conn.send(questions)
        if not self._conn.poll(deadline_s):
            raise TimeoutError(f"no answer for {deadline_s:.0f} s")
        return self._conn.recv()

    def _start(self) -> None:
        self._conn, theirs = Pipe()
        # -P and this process's search path: what can be imported there is what can be imported here.
        search_path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "srft_ray.verify.supervisor", str(theirs.fileno())],
            env={**os.environ, "PYTHONPATH": search_path},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the owner to handle
        )
        theirs.close()
        _limit_sends(self._conn, START_S)
        self._conn.send(self._settings)

    def _stop(self) -> None:
        self._conn.close()
        self._process.kill()  # its workers die with it
        self._process.wait()


def _limit_sends(conn: Connection, timeout_s: float) -> None:
    """A supervisor that does not read must not block the owner for ever."""
    with socket.socket(fileno=os.dup(conn.fileno())) as both_ways:
        both_ways.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(timeout_s), 0))


def _pack(item: Item) -> bytes:
    try:
        return pickle.dumps((item.response, item.reference, item.metadata))
    except Exception:
        return b""  # no worker can unpickle this: the verdict `error` for this item alone
