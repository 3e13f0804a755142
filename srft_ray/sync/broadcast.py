"""Bytes from one process to several at a time, over gloo or NCCL, with a deadline for every operation.

The groups are made without torch's default group, which belongs to the learners' engine or to vLLM.
"""

import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from srft_ray.sync.pieces import Piece, Place

SLICE_BYTES = 2**24  # that are sent at a time; a receiver has memory for two of them
CONNECT_TRIES = 5  # within a deadline: gloo tries again, each time as long as it is allowed for one
POLL_INTERVAL_S = 0.001  # between questions whether NCCL is done


class Deadline:
    """A point of time, so many seconds from now."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def remaining_s(self) -> float:
        """Raises TimeoutError if there is nothing left."""
        remaining_s = self._end - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError("the deadline is over")
        return remaining_s

    @property
    def remaining(self) -> timedelta:
        return timedelta(seconds=self.remaining_s)


class BroadcastGroup(Protocol):
    """Processes of which rank 0 sends."""

    device: torch.device  # of what is sent and received

    def start(self, bytes_N: Tensor, deadline: Deadline) -> Any:
        """Sends the bytes, or receives as many into the tensor; the work is done in the background."""

    def finish(self, work: Any, deadline: Deadline) -> None:
        """Waits for the work. Raises RuntimeError if a member has died, TimeoutError or RuntimeError if the
        deadline is over; the group is of no use then."""

    def close(self) -> None: ...


class GlooGroup:
    device = torch.device("cpu")

    def __init__(self, store: dist.Store, rank: int, size: int, deadline: Deadline) -> None:
        self._group = dist.ProcessGroupGloo(store, rank, size, timeout=deadline.remaining / CONNECT_TRIES)

    def start(self, bytes_N: Tensor, deadline: Deadline) -> Any:
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.timeout = deadline.remaining
        return self._group.broadcast([bytes_N], options)

    def finish(self, work: Any, deadline: Deadline) -> None:
        work.wait(deadline.remaining)

    def close(self) -> None:
        self._group.abort()


class NcclGroup:
    def __init__(self, store: dist.Store, rank: int, size: int, deadline: Deadline) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        # NCCL connects with the first operation and waits for members without a limit: all must be there.
        store.set(f"here/{rank}", b"")
        store.wait([f"here/{member}" for member in range(size)], deadline.remaining)
        with _clean_up_only():
            self._group = dist.ProcessGroupNCCL(store, rank, size, dist.ProcessGroupNCCL.Options())

    def start(self, bytes_N: Tensor, deadline: Deadline) -> Any:
        options = dist.BroadcastOptions()
        options.rootRank = 0
        return self._group.broadcast([bytes_N], options)

    def finish(self, work: Any, deadline: Deadline) -> None:
        # `wait` would only make the present stream wait, without a limit.
        while not work.is_completed():
            _ = deadline.remaining_s
            time.sleep(POLL_INTERVAL_S)
        work.wait()

    def close(self) -> None:
        self._group.abort()


@contextmanager
def _clean_up_only() -> Iterator[None]:
    """By default torch ends the whole process when a member of an NCCL group dies."""
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    before = os.environ.get(name)
    os.environ[name] = "2"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def make_group(
    backend: str, store: dist.Store, name: str, rank: int, size: int, deadline: Deadline
) -> BroadcastGroup:
    """The group of that name; all its members call this.

    Args:
        backend: gloo or nccl.
        store: of rank 0, through which the members find each other.

    Raises:
        RuntimeError: a member did not come in time.
    """
    kinds = {"gloo": GlooGroup, "nccl": NcclGroup}
    store.set_timeout(deadline.remaining)
    return kinds[backend](dist.PrefixStore(name, store), rank, size, deadline)


def send(group: BroadcastGroup, pieces: Iterable[Piece], deadline: Deadline) -> None:
    """Sends the bytes of the pieces, as `receive` takes them."""
    for piece in pieces:
        for start in range(0, piece.nbytes, SLICE_BYTES):
            bytes_N = _as_tensor(piece.data[start : start + SLICE_BYTES]).to(group.device)
            group.finish(group.start(bytes_N, deadline), deadline)


def receive(
    group: BroadcastGroup, plan: Sequence[Sequence[Place]], deadline: Deadline
) -> Iterator[tuple[list[Place], np.ndarray]]:
    """Yields the bytes of the pieces and their places; they are to be used before the next are asked for.

    Args:
        plan: the places of each piece.
    """
    buffers = [torch.empty(SLICE_BYTES, dtype=torch.uint8, device=group.device) for _ in range(2)]
    before: tuple[Any, list[Place], Tensor] | None = None
    # While one slice is used the next one arrives.
    for number, places in enumerate(places for piece in plan for places in _slices(piece)):
        bytes_N = buffers[number % 2][: sum(place.size for place in places)]
        following = group.start(bytes_N, deadline), places, bytes_N
        if before:
            yield _received(group, before, deadline)
        before = following
    if before:
        yield _received(group, before, deadline)


def _received(
    group: BroadcastGroup, started: tuple[Any, list[Place], Tensor], deadline: Deadline
) -> tuple[list[Place], np.ndarray]:
    work, places, bytes_N = started
    group.finish(work, deadline)
    return places, bytes_N.cpu().numpy()


def _slices(piece: Sequence[Place]) -> Iterator[list[Place]]:
    """The places of a piece, cut as `send` cuts its bytes."""
    places: list[Place] = []
    room = SLICE_BYTES
    for place in piece:
        start, end = place.start, place.start + place.size
        while start < end:
            size = min(room, end - start)
            places.append(Place(place.file, start, size))
            start, room = start + size, room - size
            if not room:
                yield places
                places, room = [], SLICE_BYTES
    if places:
        yield places


def _as_tensor(data: np.ndarray) -> Tensor:
    """Without a copy, also of memory that must not be written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(data)
