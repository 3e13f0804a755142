"""Fingerprints of weights: two sides that computed the same one hold the same tensors."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from srft_ray.models import is_local
from srft_ray.sync.pieces import ONLY_RANK, Rank
from srft_ray.sync.versions import fingerprint_of

BLOCK_WORDS = 2**16  # 64-bit words of a tensor that are multiplied at a time, 512 KiB
MODULUS = 2**64


class FingerprintedWeights:
    """Passes (name, tensor) pairs on and adds each to a fingerprint, so that whoever takes them proves
    nothing itself.

    The fingerprint is the sum of `tensor_hash` over all tensors modulo 2^64, in hexadecimal; the order does
    not matter. Tensors are hashed on their own device, before anything is copied.

    Attributes:
        hashes: the sum so far over the tensors of this rank. Each tensor falls to the rank that has had the
            fewest bytes, so that the ranks hash equally much, and the sums of all ranks are that of all
            tensors.
    """

    def __init__(self, weights: Iterable[tuple[str, Tensor]], rank: Rank = ONLY_RANK) -> None:
        """`rank`: of those that go through the same weights; by default all tensors are its own."""
        self.hashes = 0
        self._weights = iter(weights)
        self._rank = rank
        self._bytes = [0] * rank.count

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self

    def __next__(self) -> tuple[str, Tensor]:
        name, tensor = next(self._weights)
        owner = self._bytes.index(min(self._bytes))
        self._bytes[owner] += tensor.nbytes
        if owner == self._rank.number:
            self.hashes += tensor_hash(name, tensor)
        return name, tensor

    def exhaust(self) -> int:
        """Goes through what nobody took, and returns the sum over all tensors of this rank."""
        for _ in self:
            pass
        return self.hashes


def fingerprint(weights: Iterable[tuple[str, Tensor]]) -> str:
    """The fingerprint of all tensors, 16 hexadecimal digits."""
    return fingerprint_of(FingerprintedWeights(weights).exhaust())


def folder_fingerprint(folder: Path) -> str:
    """The fingerprint of all tensors in the safetensors files of a folder, by their names there."""
    return fingerprint(_tensors(sorted(folder.glob("*.safetensors"))))


def model_fingerprint(path: str) -> str:
    """The fingerprint of a model's weights, which is that of version 0: engines and learners start from
    them."""
    return fingerprint(model_tensors(path))


def model_tensors(path: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model's weight files, one after another, as they lie on disk.

    `path` is a directory or the id of a model on a hub, which must have been downloaded.
    """
    folder = Path(path).expanduser()
    if not is_local(path):
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(path, local_files_only=True))
    return _tensors(weight_files(folder))


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
        total += _odd(number) * _dot(block_N, _factors(block_N.device)[: block_N.numel()])
    about = f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|{total % MODULUS}"
    return int.from_bytes(hashlib.blake2b(about.encode(), digest_size=8).digest(), "little")


def _dot(one_N: Tensor, other_N: Tensor) -> int:
    """The sum of the products modulo 2^64."""
    if one_N.device.type == "cpu":
        # One pass, and faster than `dot`; integers overflow without an error.
        return int(np.einsum("i,i->", one_N.numpy(), other_N.numpy()))
    return int((one_N * other_N).sum())


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
