"""Weights as pieces of safetensors files: each rank of the learners sends a part of every tensor, and the
engines' side puts the files together.

A file begins with 8 bytes, the length of its header, and the header: names, types, shapes and places of the
tensors, in JSON. Their bytes follow, one after the other.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

CODES = {  # of safetensors
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Rank:
    """One of the ranks that publish together.

    Attributes:
        number: 0 to `count` - 1.
    """

    number: int = 0
    count: int = 1

    @classmethod
    def of_this_process(cls) -> "Rank":
        """In the process group of the learners; the only one where there is no group."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    def bounds(self, size: int) -> tuple[int, int]:
        """The part (start, stop) of `size` bytes that this rank sends; parts differ by at most one byte."""
        return size * self.number // self.count, size * (self.number + 1) // self.count


ONLY_RANK = Rank()


@dataclass(frozen=True)
class Place:
    """Where a part of a tensor belongs.

    Attributes:
        start: its first byte behind the file's header.
        size: of the part, in bytes.
    """

    file: str
    start: int
    size: int


@dataclass(frozen=True)
class Piece:
    """Parts of tensors.

    Attributes:
        places: of the parts.
        data: the bytes of all parts, one after the other, uint8.
    """

    places: list[Place]
    data: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


class Files:
    """The files that a version consists of. One for each type of numbers, so that tensors are aligned."""

    def __init__(self) -> None:
        self._sizes: Counter[str] = Counter()
        self._headers: dict[str, dict[str, Any]] = {}

    def add(self, name: str, tensor: Tensor) -> tuple[str, int]:
        """Gives the tensor a place behind those added before: (file, first byte behind the header)."""
        file = f"model-{CODES[tensor.dtype]}.safetensors"
        start = self._sizes[file]
        self._sizes[file] += tensor.nbytes
        self._headers.setdefault(file, {})[name] = header_entry(tensor, start)
        return file, start

    def headers(self) -> dict[str, bytes]:
        """The beginning of each file, up to its tensors."""
        return {file: header(entries) for file, entries in self._headers.items()}


def header_entry(tensor: Tensor, start: int) -> dict[str, Any]:
    """What a header says of a tensor; `start`: its first byte behind the header."""
    return {
        "dtype": CODES[tensor.dtype],
        "shape": list(tensor.shape),
        "data_offsets": [start, start + tensor.nbytes],
    }


def header(entries: Mapping[str, Any]) -> bytes:
    """The beginning of a file: `entries` says what follows, as safetensors does."""
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class PieceBuffer:
    """Memory that `cut` copies into, again for each piece: new memory costs more than the copy."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes of a piece; a part of a tensor that is larger makes a larger piece."""
        self.limit = limit
        self._bytes_N = torch.empty(0, dtype=torch.uint8)
        self._places: list[Place] = []
        self._size = 0

    @property
    def is_empty(self) -> bool:
        return self._size == 0

    def has_room(self, size: int) -> bool:
        return self.is_empty or self._size + size <= self.limit

    def add(self, file: str, start: int, bytes_N: Tensor) -> None:
        """Copies a part of a tensor; there must be room."""
        size = bytes_N.numel()
        end = self._size + size
        if end > self._bytes_N.numel():
            pinned = bytes_N.is_cuda  # memory that a GPU writes without a copy in between
            self._bytes_N = torch.empty(max(self.limit, end), dtype=torch.uint8, pin_memory=pinned)
        self._bytes_N[self._size : end].copy_(bytes_N)
        self._places.append(Place(file, start, size))
        self._size = end

    def take(self) -> Piece:
        """What was added since the last call. Its bytes stay what they are until something is added."""
        piece = Piece(self._places, self._bytes_N[: self._size].numpy())
        self._places, self._size = [], 0
        return piece


def cut(
    weights: Iterable[tuple[str, Tensor]],
    rank: Rank,
    buffer: PieceBuffer,
    files: Files,
    direct: bool = False,
) -> Iterator[Piece]:
    """Copies what `rank` sends of each tensor to the CPU, in pieces of about the buffer's limit; if `direct`,
    what is on the CPU is not copied, and each part of a tensor is a piece.

    It goes through all tensors, which is a collective, and gives each a place in `files`. Tied tensors come
    under each name: an engine that is not given its head keeps the old one without an error. A piece is to be
    used before the next one is asked for.
    """
    for name, tensor in weights:
        file, place = files.add(name, tensor)
        start, stop = rank.bounds(tensor.nbytes)
        bytes_N = tensor.detach().contiguous().reshape(-1).view(torch.uint8)[start:stop]
        if stop > start and direct and bytes_N.is_cpu:
            yield Piece([Place(file, place + start, stop - start)], bytes_N.numpy())
        elif stop > start:
            if not buffer.has_room(stop - start):
                yield buffer.take()
            buffer.add(file, place + start, bytes_N)
        del bytes_N, tensor  # before the next one needs memory
    if not buffer.is_empty:
        yield buffer.take()


class FileWriter:
    """Puts the files of a version together, in a folder; a context. Several threads may write."""

    def __init__(self, headers: Mapping[str, bytes], folder: Path) -> None:
        self._headers = headers
        self._opened = {file: os.open(folder / file, os.O_WRONLY | os.O_CREAT, 0o600) for file in headers}
        for file, header in headers.items():
            write_all(self._opened[file], np.frombuffer(header, np.uint8), 0)

    def __enter__(self) -> "FileWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in self._opened.values():
            os.close(descriptor)

    def write(self, places: Iterable[Place], data: np.ndarray) -> None:
        """`data`: the bytes of all places, one after the other."""
        begin = 0
        for place in places:
            part = data[begin : begin + place.size]
            write_all(self._opened[place.file], part, len(self._headers[place.file]) + place.start)
            begin += place.size


def write_all(descriptor: int, data: np.ndarray, start: int) -> None:
    """Writes the bytes from `start` on; the system takes at most 2 GiB at a time."""
    done = 0
    while done < data.nbytes:
        done += os.pwrite(descriptor, data[done:], start + done)


def write_files(headers: Mapping[str, bytes], pieces: Iterable[Piece], folder: Path) -> None:
    """Puts the files together; each byte of each tensor comes in one of the pieces."""
    with FileWriter(headers, folder) as writer:
        for piece in pieces:
            writer.write(piece.places, piece.data)
