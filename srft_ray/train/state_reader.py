"""Reads the tensors of a checkpoint by name, one at a time, from its safetensors files on any storage."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyarrow import fs

if TYPE_CHECKING:
    from torch import Tensor

STATE_PREFIX = "state-"  # of the files that hold the training state
LENGTH_BYTES = 8  # a safetensors file begins with the length of its header


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: the bytes from `start` to before `end` of a file."""

    file: str
    start: int
    end: int


class StateReader:
    """The training state of one checkpoint: float32 tensors by name.

    Args:
        files: the storage.
        folder: the checkpoint's folder on it.
        manifest: what the checkpoint's marker records.
    """

    def __init__(self, files: fs.FileSystem, folder: str, manifest: Mapping[str, Any]) -> None:
        self.files = files
        self.folder = folder
        self.manifest = manifest
        self._places: dict[str, Place] = {}
        for file in manifest["files"]:
            if file.startswith(STATE_PREFIX):
                self._places |= self._read_header(file)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> "Tensor":
        """The tensor as one dimension, float32."""
        import torch  # here, because the driver opens checkpoints without it

        place = self._places[name]
        with self.files.open_input_file(f"{self.folder}/{place.file}") as file:
            content = file.read_at(place.end - place.start, place.start)
        return torch.frombuffer(bytearray(content), dtype=torch.float32)

    def _read_header(self, name: str) -> dict[str, Place]:
        """A safetensors file is the length of its header, the header as JSON, and the tensors."""
        with self.files.open_input_file(f"{self.folder}/{name}") as file:
            length = int.from_bytes(file.read_at(LENGTH_BYTES, 0), "little")
            header = json.loads(file.read_at(length, LENGTH_BYTES))
        header.pop("__metadata__", None)
        data = LENGTH_BYTES + length
        places = {}
        for tensor, entry in header.items():
            start, end = entry["data_offsets"]
            places[tensor] = Place(name, data + start, data + end)
        return places
