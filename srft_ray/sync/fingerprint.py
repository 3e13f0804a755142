"""Fingerprints of weights: two sides that computed the same one hold the same tensors."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from srft_ray.models import is_local

BLOCK_WORDS = 2**16  # 64-bit words of a tensor that are multiplied at a time, 512 KiB
MODULUS = 2**64


class FingerprintedWeights:
    """Passes (name, tensor) pairs on and adds each to a fingerprint, so that whoever takes them proves
    nothing itself.

    The fingerprint is the sum of `tensor_hash` over all tensors modulo 2^64, in hexadecimal; the order does
    not matter. Tensors are hashed on their own device, before anything is copied.
    """

    def __init__(self, weights: Iterable[tuple[str, Tensor]], active: bool = True) -> None:
        """`active`: whether this rank computes the fingerprint; one of all ranks is enough."""
        self._weights = iter(weights)
        self._active = active
        self._sum = 0

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self

    def __next__(self) -> tuple[str, Tensor]:
        name, tensor = next(self._weights)
        if self._active:
            self._sum = (self._sum + tensor_hash(name, tensor)) % MODULUS
        return name, tensor

    def exhaust(self) -> str:
        """Goes through what nobody took, and returns the fingerprint of all tensors."""
        for _ in self:
            pass
        return f"{self._sum:016x}"


def fingerprint(weights: Iterable[tuple[str, Tensor]]) -> str:
    """The fingerprint of all tensors, 16 hexadecimal digits."""
    return FingerprintedWeights(weights).exhaust()


def folder_fingerprint(folder: Path) -> str:
    """The fingerprint of all tensors in the safetensors files of a folder, by their names there."""
    return fingerprint(_tensors(sorted(folder.glob("*.safetensors"))))


def model_fingerprint(path: str) -> str:
    """The fingerprint of a model's weight files, as they lie on disk; `path` is a directory or the id of a
    model on a hub.

    It is that of version 0: engines and learners start from these files. A model of a hub must have been
    downloaded.
    """
    folder = Path(path).expanduser()
    if not is_local(path):
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(path, local_files_only=True))
    return fingerprint(_tensors(weight_files(folder)))


def tensor_hash(name: str, tensor: Tensor) -> int:
    """A hash of a tensor's bytes, shape, type and name, 0 to 2^64 - 1.

    The bytes are read as 64-bit words. Each is multiplied by an odd number that belongs to its place, so that
    a change of any one word changes the sum; integer sums modulo 2^64 do not depend on their order, hence not
    on the device.
    """
    words_N = _words(tensor)
    total = 0
    for number, start in enumerate(range(0, words_N.numel(), BLOCK_WORDS)):
        block_N = words_N[start : start + BLOCK_WORDS]
        factors_N = _factors(block_N.device)[: block_N.numel()]
        total += _odd(number) * int((block_N * factors_N).sum())
    about = f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|{total % MODULUS}"
    return int.from_bytes(hashlib.blake2b(about.encode(), digest_size=8).digest(), "little")


def _words(tensor: Tensor) -> Tensor:
    """The bytes of a tensor as int64, filled up with zeros; no copy if the bytes fit."""
    bytes_N = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    missing = -bytes_N.numel() % 8
    misaligned = bytes_N.storage_offset() % 8 or bytes_N.data_ptr() % 8
    if missing or misaligned:
        bytes_N = torch.cat([bytes_N, bytes_N.new_zeros(missing)])
    return bytes_N.view(torch.int64)


@cache
def _factors(device: torch.device) -> Tensor:
    """One odd number for each place of a block, the same on every machine."""
    seed = hashlib.shake_256(b"srft_ray weights").digest(8 * BLOCK_WORDS)
    return (torch.frombuffer(bytearray(seed), dtype=torch.int64) | 1).to(device)


def _odd(number: int) -> int:
    """An odd number for each block of a tensor."""
    return int.from_bytes(hashlib.blake2b(str(number).encode(), digest_size=8).digest(), "little") | 1


def weight_files(folder: Path) -> list[Path]:
    """The files that a model consists of; a folder may hold the same weights twice, under other names."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    whole = folder / "model.safetensors"
    return [whole] if whole.exists() else sorted(folder.glob("*.safetensors"))


def _tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no dictionary
                yield name, opened.get_tensor(name)
