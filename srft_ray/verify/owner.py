"""The process that holds the `VerifierPool`, as the supervisor sees it."""

import math
import os
import select
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection

POLL_INTERVAL_S = 0.5  # between two looks at whether the owner lives


class Owner:
    """Its connection, and whether it lives."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.pid = os.getppid()

    def wait(self, fds: Iterable[int], until: float) -> set[int]:
        """The readable ones of `fds` and the owner's, after POLL_INTERVAL_S or at `until` at the latest.

        Raises:
            EOFError: the owner died. A process that it forked may hold the connection open for ever.
        """
        poller = select.poll()
        for fd in (self.conn.fileno(), *fds):
            poller.register(fd, select.POLLIN)
        timeout_s = max(0.0, min(POLL_INTERVAL_S, until - time.monotonic()))
        readable = {fd for fd, _ in poller.poll(math.ceil(1000 * timeout_s))}
        if os.getppid() != self.pid:
            raise EOFError("the owner died")
        return readable

    def has_spoken(self, readable: set[int]) -> bool:
        """Whether a `wait` found a request, or the connection closed."""
        return self.conn.fileno() in readable

    def next_request(self) -> list[bytes]:
        """The pickled items of the owner's next request. EOFError where it is gone."""
        while not self.has_spoken(self.wait([], math.inf)):
            pass
        return self.conn.recv()

    def send(self, message: bytes) -> None:
        self.conn.send_bytes(message)
