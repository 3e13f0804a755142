"""Weights that a learner writes at once where the engines of its node will load them."""

import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from srft_ray.sync.node_copy import PART, PREFIX, hold, remove_if_free, remove_leftovers, shared_memory
from srft_ray.sync.pieces import Piece, Place, write_all


class StagedFiles:
    """The files of a version in shared memory, with this learner's parts of the tensors at their places.

    All learners of a node write into the same files. The listener that makes the copy of the node gives them
    a second name there (a hard link), so that no byte is copied; engines then keep them however long learners
    do. Learners keep them for those whom the round did not reach.
    """

    def __init__(self, name: str, headers: Mapping[str, bytes], spare: "StagedFiles | None" = None) -> None:
        """
        Args:
            name: the same for all learners of the node, and for no other version.
            headers: the beginnings that the files are expected to have.
            spare: of a version that is not offered any more. Its memory is used again unless engines still
                have it, because new memory costs more than the copy; it is closed.
        """
        self.headers = headers
        self._are_whole = False
        self.folder = shared_memory() / f"{PREFIX}{os.getuid()}_{name}{PART}staged"
        self._places: list[Place] = []
        self._opened: dict[str, int] = {}
        remove_leftovers(self.folder)
        if spare and spare._are_whole and spare.headers == headers:
            # Under the old name a listener, however late, would find what is written now. Another learner of
            # the node may have done this already.
            with suppress(OSError):
                spare.folder.rename(self.folder)
        held = _hold_or_make(self.folder)
        if spare:
            spare.close()
        if not _is_free(self.folder):
            _leave(self.folder, held, {})
            # A learner that found it free is not met here; the round sees that, and then all of them copy.
            self.folder = self.folder.with_name(f"{self.folder.name}_anew")
            held = _hold_or_make(self.folder)
        # Also at the end of the process.
        self._finalizer = weakref.finalize(self, _leave, self.folder, held, self._opened)
        for file, header in headers.items():
            write_all(self._descriptor(file), np.frombuffer(header, np.uint8), 0)

    def write(self, piece: Piece) -> None:
        """Raises OSError, and has not taken the piece, if there is no room."""
        begin = 0
        for place in piece.places:
            part = piece.data[begin : begin + place.size]
            write_all(self._descriptor(place.file), part, self._start(place))
            begin += place.size
        self._places.extend(piece.places)

    def finish(self, headers: Mapping[str, bytes]) -> str:
        """The folder; empty if the headers are others than those expected, so that the files are none.

        What was written can be read all the same.
        """
        self._are_whole = headers == self.headers
        return str(self.folder) if self._are_whole else ""

    def plan(self, limit: int) -> list[list[Place]]:
        """The places of what was written, in pieces of about `limit` bytes."""
        plan: list[list[Place]] = []
        size = 0
        for place in self._places:
            if not plan or size + place.size > limit:
                plan.append([])
                size = 0
            plan[-1].append(place)
            size += place.size
        return plan

    def pieces(self, limit: int) -> Iterator[Piece]:
        """What was written, as `plan` says; a piece is to be used before the next one is asked for."""
        plan = self.plan(limit)
        sizes = [sum(place.size for place in places) for places in plan]
        buffer = np.empty(max(sizes, default=0), np.uint8)
        for places, size in zip(plan, sizes, strict=True):
            begin = 0
            for place in places:
                self._read(place, buffer[begin : begin + place.size])
                begin += place.size
            yield Piece(places, buffer[:size])

    def close(self) -> None:
        """Leaves the files to the engines that have them."""
        self._finalizer()

    def _descriptor(self, file: str) -> int:
        if file not in self._opened:
            self._opened[file] = os.open(self.folder / file, os.O_RDWR | os.O_CREAT, 0o600)
        return self._opened[file]

    def _start(self, place: Place) -> int:
        return len(self.headers.get(place.file, b"")) + place.start

    def _read(self, place: Place, data: np.ndarray) -> None:
        """The system gives at most 2 GiB at a time. Raises OSError where the file ends before."""
        done, start = 0, self._start(place)
        while done < place.size:
            count = os.preadv(self._opened[place.file], [data[done:]], start + done)
            if not count:
                raise OSError(f"{self.folder / place.file} was cut while its learner still has it")
            done += count


def _hold_or_make(folder: Path) -> int:
    """A descriptor that keeps the folder where it is until it is closed."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        # Until it is held, another process may take it for a leftover and remove it.
        descriptor = hold(folder)
        if descriptor is not None:
            return descriptor


def _leave(folder: Path, held: int, opened: Mapping[str, int]) -> None:
    for descriptor in (*opened.values(), held):
        os.close(descriptor)
    remove_if_free(folder)


def _is_free(folder: Path) -> bool:
    """Whether no copy of a node consists of the files."""
    return all(file.stat().st_nlink == 1 for file in folder.iterdir())
