"""Weights as pieces of safetensors files: each rank of the learners sends a part of every tensor, and the
engines' side puts the files together.

A file begins with 8 bytes, the length of its header, and the header: names, types, shapes and places of the
tensors, in JSON. Their bytes follow, one after the other.
"""

import json
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
class Piece:
    """Parts of tensors.

    Attributes:
        places: the (file, first byte behind the header) of each part.
        parts: the bytes of each part, uint8.
    """

    places: list[tuple[str, int]]
    parts: list[np.ndarray]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


class Files:
    """The files that a version consists of. One for each type of numbers, so that tensors are aligned."""

    def __init__(self) -> None:
        self._sizes: Counter[str] = Counter()
        self._headers: dict[str, dict[str, Any]] = {}

    def add(self, name: str, tensor: Tensor) -> tuple[str, int]:
        """Gives the tensor a place behind those added before: (file, first byte behind the header)."""
        code = CODES[tensor.dtype]
        file = f"model-{code}.safetensors"
        start = self._sizes[file]
        self._sizes[file] += tensor.nbytes
        about = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [start, self._sizes[file]]}
        self._headers.setdefault(file, {})[name] = about
        return file, start

    def headers(self) -> dict[str, bytes]:
        """The beginning of each file, up to its tensors."""
        return {file: _header(entries) for file, entries in self._headers.items()}


def _header(entries: Mapping[str, Any]) -> bytes:
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def cut(weights: Iterable[tuple[str, Tensor]], rank: Rank, limit: int, files: Files) -> Iterator[Piece]:
    """Copies what `rank` sends of each tensor to the CPU, in pieces of about `limit` bytes.

    It goes through all tensors, which is a collective, and gives each a place in `files`. Tied tensors come
    under each name: an engine that is not given its head keeps the old one without an error.
    """
    piece, size = Piece([], []), 0
    for name, tensor in weights:
        file, place = files.add(name, tensor)
        start, stop = rank.bounds(tensor.nbytes)
        bytes_N = tensor.detach().contiguous().reshape(-1).view(torch.uint8)[start:stop]
        piece.places.append((file, place + start))
        piece.parts.append(bytes_N.to("cpu", copy=True).numpy())
        size += stop - start
        if size >= limit:
            yield piece
            piece, size = Piece([], []), 0
    if size:
        yield piece


def write_files(headers: Mapping[str, bytes], pieces: Iterable[Piece], folder: Path) -> None:
    """Puts the files together; each byte of each tensor comes in one of the pieces."""
    opened = {file: (folder / file).open("wb") for file in headers}
    try:
        for file, header in headers.items():
            opened[file].write(header)
        for piece in pieces:
            for (file, place), part in zip(piece.places, piece.parts, strict=True):
                opened[file].seek(len(headers[file]) + place)
                opened[file].write(part)
    finally:
        for file in opened.values():
            file.close()
