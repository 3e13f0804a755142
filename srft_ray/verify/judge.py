"""The owner's side of the verifier processes."""
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing import Pipe

from srft_ray.errors import UserError
from srft_ray.verify.verifier import Item, Verdict


class Judge:
    """Judges responses in worker processes of its own, each item bounded by `timeout_s` and `memory_mb`.

    What hangs costs one `timeout`, what crashes or raises one `error`; the other items are judged as if it had not been
    there. Usable from any thread, one call at a time. The processes die with the owner, however it dies. `memory_mb` is
    per worker, on top of what the verifier's imports take.
    """

    def __init__(self, name: str, path: str | None = None, timeout_s: float = 2.0, num_workers: int = 1, memory_mb: int = 2048) -> None:
        self._settings, self._lock = (name, path, timeout_s, num_workers, memory_mb), threading.Lock()
        self._start()

    def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in order. Raises UserError where `resolve` would; starts anew after `close`."""
        jobs = [_pack(item) for item in items]
        with self._lock:
            if self._conn.closed:
                self._start()
            try:
                self._conn.send(jobs)
                replies = self._conn.recv()
            except BaseException:
                self._stop()  # an interrupted request must not leave its reply to the next one
                raise
        if isinstance(replies, str):
            raise UserError(replies)
        return [pickle.loads(reply) for reply in replies]

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self._stop()

    def _start(self) -> None:
        self._conn, theirs = Pipe()
        # -P and this process's search path: there can be imported what can be imported here, and nothing else
        command = [sys.executable, "-P", "-m", "srft_ray.verify.keeper", str(theirs.fileno())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
        self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                                         start_new_session=True)  # Ctrl-C is the owner's
        theirs.close()
        self._conn.send(self._settings)

    def _stop(self) -> None:
        self._conn.close()
        self._process.wait()


def _pack(item: Item) -> bytes:
    try:
        return pickle.dumps((item.response, item.reference, item.metadata))
    except Exception:
        return b""  # no worker can unpickle this: an error verdict for this item alone
