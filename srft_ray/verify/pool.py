"""The owner's side of the verifier processes."""

import dataclasses
import os
import pickle
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe

from srft_ray.errors import UserError
from srft_ray.verify.directories import remove_pool_directories
from srft_ray.verify.processes import kill_descendants
from srft_ray.verify.replies import ACCEPTED, ERROR, MAX_REPLIES, MAX_REPLY_BYTES, REFUSED, decode
from srft_ray.verify.settings import Settings, pickle_function, set_socket_timeouts
from srft_ray.verify.verifier import Item, Verdict

TRIES = 3
MAX_DEATHS = 20  # of the supervisor under items, in a row, without any verdict
START_S = 120.0  # for the supervisor to start: a verifier's imports
CLOSE_S = 2.0  # for the supervisor to end by itself

# What verifier processes see of the owner's environment: no secrets, but what Python and its libraries need.
ENVIRONMENT = frozenset(
    (
        "CUDA_VISIBLE_DEVICES",
        "HF_HUB_OFFLINE",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "MKL_NUM_THREADS",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "PATH",
        "PYTHONHASHSEED",
        "PYTHONUTF8",
        "TMPDIR",
        "TZ",
        "VIRTUAL_ENV",
    )
)
ENVIRONMENT_PREFIXES = ("LC_", "SRFT_")


class VerifierFailed(RuntimeError):
    """The verifier processes themselves fail, whatever they are given."""


class VerifierPool:
    """Verifies responses in processes of its own; each item is bounded by `timeout_s` and `memory_mb`.

    A response whose verification hangs gets the verdict `timeout`, one whose verification crashes or raises
    gets `error`; nothing else is affected. What an item starts and writes ends with it. Usable from any
    thread, one call at a time. The processes end with the owner, however it ends. `sandbox` tells what
    verifiers are kept from; one that runs code of a response in its own process wants `items_per_worker=1`.

    Args:
        name: a built-in verifier, one of `BUILT_IN`, unless one of the next two is given.
        path: the user's own, as "file.py:function".
        function: the user's own, as a Python callable (a lambda too).
        timeout_s: of one item.
        num_workers: items that are verified at the same time.
        memory_mb: per worker, on top of what the verifier's imports take.
        items_per_worker: a worker is replaced after so many.
        network: whether verifiers may use the network.
        environment: names of further environment variables that verifiers may see.
        namespaces: False as on a kernel that refuses them, see `sandbox`.

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
        items_per_worker: int = 1000,
        network: bool = False,
        environment: Sequence[str] = (),
        namespaces: bool = True,
    ) -> None:
        self._settings = Settings(
            name=name,
            path=path,
            function=None if function is None else pickle_function(function),
            timeout_s=timeout_s,
            num_workers=num_workers,
            memory_mb=memory_mb,
            items_per_worker=items_per_worker,
            network=network,
            namespaces=namespaces,
            token=secrets.token_hex(8),
        )
        self._environment = ENVIRONMENT | set(environment)
        self._lock = threading.Lock()
        self._start()

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in order. Starts the processes again after `close`.

        Processes that die or hang are replaced and asked again. An item that was alone both times when they
        did so gets the verdict `error`.

        Raises:
            UserError: where `resolve` would.
            VerifierFailed: the processes died or hung TRIES times in a row before they took an item, or
                MAX_DEATHS times in a row under items.
        """
        request = _Request([_pack(item) for item in items])
        with self._lock:
            while batch := request.next_batch():
                if self._conn.closed:
                    self._start()
                try:
                    self._ask(request, batch)
                except (EOFError, OSError) as error:
                    self._stop()
                    request.failed(batch, str(error) or type(error).__name__)
                except BaseException:
                    self._stop()  # an interrupted request must not leave its replies to the next one
                    raise
        return request.verdicts()

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self._stop()

    def _ask(self, request: "_Request", batch: list[int]) -> None:
        """Put the supervisor's replies into `request`. OSError or EOFError where it hangs or dies."""
        # The supervisor bounds every item and tries one at most twice: if it is silent for longer, it hangs.
        silence_s = START_S + 3 * self._settings.timeout_s
        set_socket_timeouts(self._conn.fileno(), START_S, silence_s)
        self._conn.send([request.questions[index] for index in batch])
        answer = self._conn.recv_bytes(MAX_REPLY_BYTES)
        if answer.startswith(REFUSED):
            raise UserError(answer.removeprefix(REFUSED).decode())
        request.accepted = answer == ACCEPTED
        missing = len(batch)
        while missing:
            lines = self._conn.recv_bytes(2 * MAX_REPLIES * MAX_REPLY_BYTES).split(b"\n")
            missing -= len(lines)
            for line in lines:
                number, _, reply = line.partition(b" ")
                request.take(batch[int(number)], reply)
        request.batch_size *= 2

    def _start(self) -> None:
        self._conn, theirs = Pipe()
        search_path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environment = {
            name: value
            for name, value in os.environ.items()
            if name in self._environment or name.startswith(ENVIRONMENT_PREFIXES)
        }
        self._process = subprocess.Popen(
            # -P and this process's search path: what can be imported there is what can be imported here.
            [sys.executable, "-P", "-m", "srft_ray.verify.supervisor", str(theirs.fileno())],
            env={**environment, "PYTHONPATH": search_path, "PYTHONUNBUFFERED": "1"},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the owner to handle
        )
        # Neither side may wait for ever for one that does not read.
        set_socket_timeouts(theirs.fileno(), START_S)
        theirs.close()
        set_socket_timeouts(self._conn.fileno(), START_S)
        self._conn.send(self._settings)
        self._settings = dataclasses.replace(self._settings, restarted=True)

    def _stop(self) -> None:
        # The supervisor ends when it finds the connection closed, and first ends what descends from it.
        self._conn.close()
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            # Its descendants first: when it is gone, nobody can tell what it had started.
            kill_descendants(self._process.pid)
            self._process.kill()
            self._process.wait()
        remove_pool_directories(self._settings.token)


class _Request:
    """Which items have their verdict, and how many of the others are asked for at once."""

    def __init__(self, questions: list[bytes]) -> None:
        self.questions = questions
        self.accepted = False  # whether the supervisor has taken the batch
        self.batch_size = len(questions)
        self._verdicts: list[Verdict | None] = [None] * len(questions)
        self._failed_alone = set[int]()
        self._failures = 0  # in a row, before a batch was taken
        self._deaths = 0  # in a row, under a batch

    def next_batch(self) -> list[int]:
        """Items to ask for next; none if all have their verdict."""
        self.accepted = False
        left = [index for index, verdict in enumerate(self._verdicts) if verdict is None]
        return left[: self.batch_size]

    def take(self, index: int, reply: bytes) -> None:
        self._verdicts[index] = decode(reply)
        self._failures = 0
        self._deaths = 0

    def failed(self, batch: list[int], reason: str) -> None:
        """The supervisor died or hung with `batch`. VerifierFailed where it is pointless to go on."""
        if not self.accepted:
            self._failures += 1
            if self._failures == TRIES:
                raise VerifierFailed(f"the verifier processes died or hung {TRIES} times in a row: {reason}")
            return
        self._failures = 0
        self._deaths += 1
        if self._deaths == MAX_DEATHS:
            raise VerifierFailed(
                f"the verifier processes died {MAX_DEATHS} times in a row under items: {reason}"
            )
        # Fewer at once from now on, until the item that ends the supervisor is asked for alone.
        self.batch_size = max(1, len(batch) // 8)
        if len(batch) == 1 and batch[0] in self._failed_alone:
            self._verdicts[batch[0]] = ERROR
        elif len(batch) == 1:
            self._failed_alone.add(batch[0])

    def verdicts(self) -> list[Verdict]:
        return [verdict or ERROR for verdict in self._verdicts]


def _pack(item: Item) -> bytes:
    with suppress(Exception):
        return pickle.dumps((item.response, item.reference, item.metadata))
    return b""  # no worker can unpickle this: the verdict `error` for this item alone
