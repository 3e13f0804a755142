"""What the owner of a `VerifierPool` tells its supervisor process."""

import math
import os
import pickle
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from srft_ray.errors import UserError
from srft_ray.verify.verifier import Verify, resolve


@dataclass(frozen=True)
class Settings:
    """Which verifier, and the bounds of one item."""

    name: str
    path: str | None
    function: bytes | None  # a callable, pickled by `pickle_function`
    timeout_s: float
    num_workers: int
    memory_mb: int  # per worker, on top of what the verifier's imports take
    items_per_worker: int  # then a worker is replaced: what a verifier leaks must not add up
    network: bool
    namespaces: bool
    token: str  # names the pool's temporary directories
    restarted: bool = False
    directory: str = ""  # temporary; the supervisor makes it

    def is_built_in(self) -> bool:
        return not self.path and self.function is None

    def cpu_s(self) -> int:
        """CPU time of one worker process; it is replaced after half of it, so that no item lacks any."""
        return 2 * (60 + math.ceil(self.timeout_s) * (os.cpu_count() or 1))


def pickle_function(function: Callable) -> bytes:
    """`function` as bytes that `load_verifier` understands. UserError where it cannot be sent or called."""
    import cloudpickle  # only here: most pools name their verifier

    resolve("", function=function)
    try:
        return cloudpickle.dumps(function)
    except Exception as error:
        raise UserError(
            f"verifier: the function cannot be sent to the verifier processes "
            f"({type(error).__name__}: {error}): let it use no lock, open file or connection of this process"
        ) from error


def load_verifier(settings: Settings) -> Verify:
    """The verifier that the settings describe. UserError where it cannot be had."""
    if settings.function is None:
        return resolve(settings.name, settings.path)
    try:
        function = pickle.loads(settings.function)
    except Exception as error:
        raise UserError(
            f"verifier: the function cannot be loaded in the verifier processes "
            f"({type(error).__name__}: {error}): a module that it needs must be importable there"
        ) from error
    return resolve("", function=function)


def set_socket_timeouts(fd: int, send_s: float, receive_s: float = 0.0) -> None:
    """Let a blocking read or write fail (BlockingIOError) after so many seconds; 0 is never."""
    with socket.socket(fileno=os.dup(fd)) as both_ways:
        for option, seconds in ((socket.SO_SNDTIMEO, send_s), (socket.SO_RCVTIMEO, receive_s)):
            microseconds = int(seconds * 1e6)
            value = struct.pack("ll", microseconds // 1_000_000, microseconds % 1_000_000)
            both_ways.setsockopt(socket.SOL_SOCKET, option, value)
