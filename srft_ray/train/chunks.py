"""Tensors in chunks of a bounded size, for files."""

from collections.abc import Callable, Iterator

from torch import Tensor


def chunks(
    tensors: Iterator[tuple[str, Tensor]], limit: int, keep: Callable[[int], bool]
) -> Iterator[dict[str, Tensor]]:
    """Copies tensors to the CPU and gathers them to chunks of about `limit` bytes, by name.

    It goes through all tensors, which is a collective, and keeps those whose number this rank is to `keep`.
    Tied tensors come under each name: an engine that is not given its head keeps the old one without an
    error.
    """
    chunk: dict[str, Tensor] = {}
    size = 0
    for number, (name, tensor) in enumerate(tensors):
        if not keep(number):
            continue
        chunk[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += tensor.nbytes
        if size >= limit:
            yield chunk
            chunk, size = {}, 0
    if chunk:
        yield chunk
