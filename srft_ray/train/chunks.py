"""Tensors in chunks of a bounded size, and a chunk as the content of a safetensors file."""

from collections.abc import Callable, Iterator, Mapping
from itertools import count

import torch
from torch import Tensor

from srft_ray.sync.pieces import header, header_entry

PIECE_BYTES = 2**30  # of a checkpoint, about the size of one file


def chunks(
    tensors: Iterator[tuple[str, Tensor]], limit: int, keep: Callable[[int], bool], copy: bool
) -> Iterator[dict[str, Tensor]]:
    """Gathers tensors on the CPU to chunks of about `limit` bytes, by name.

    It goes through all tensors, which is a collective, and keeps those whose number this rank is to `keep`.
    Tied tensors come under each name: an engine that is not given its head keeps the old one without an
    error.

    Args:
        copy: whether the tensors may change after they are given.
    """
    chunk: dict[str, Tensor] = {}
    size, numbers = 0, count()  # `enumerate` would hold a tensor while the next one is made
    for name, tensor in tensors:
        if keep(next(numbers)):
            chunk[name] = tensor.detach().to("cpu", copy=copy).contiguous()
            size += tensor.nbytes
        del tensor  # before the next one needs memory
        if size >= limit:
            yield chunk
            chunk, size = {}, 0
    if chunk:
        yield chunk


def safetensors_parts(
    chunk: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """What a safetensors file of the chunk consists of, without a copy of the tensors."""
    # Large numbers first, so that all are aligned.
    ordered = sorted(chunk.items(), key=lambda item: -item[1].element_size())
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    size = 0
    for name, tensor in ordered:
        entries[name] = header_entry(tensor, size)
        size += tensor.nbytes
    yield header(entries)
    for _, tensor in ordered:
        yield memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
