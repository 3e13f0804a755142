"""One rank's files of a checkpoint: written at once, or by a thread while training goes on."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from srft_ray.train.nonfinite import first_nonfinite_tensor

Entries = dict[str, dict[str, Any]]  # of the manifest: size and checksum by file name


@dataclass
class Share:
    """What one rank wrote of a checkpoint.

    Attributes:
        entries: of its files in the manifest.
        error: why the storage refused a file.
        nonfinite: name of a tensor that no checkpoint may hold.
    """

    entries: Entries = field(default_factory=dict)
    error: str | None = None
    nonfinite: str | None = None

    def add(self, tensors: Mapping[str, Tensor], write: Callable[[], Entries]) -> None:
        """Writes tensors, unless something failed before."""
        self.nonfinite = self.nonfinite or first_nonfinite_tensor(tensors)
        if not self.nonfinite and not self.error:
            self.error = attempt(lambda: self.entries.update(write()))


class BackgroundShare:
    """A share whose files are written by a thread, in order.

    What waits to be written stays in memory: the caller begins no other share before this one is whole.
    """

    def __init__(self) -> None:
        self._share = Share()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._futures: list[Future[None]] = []

    def add(self, tensors: Mapping[str, Tensor], write: Callable[[], Entries]) -> None:
        """As of Share. Neither the tensors nor what `write` reads may change any more."""
        self._futures.append(self._writer.submit(partial(self._share.add, tensors, write)))

    def is_written(self, timeout_s: float) -> bool:
        """Whether all files are there, or have been refused, within so many seconds."""
        return not wait(self._futures, timeout_s).not_done

    def result(self) -> Share:
        """The share when it is written. Raises what was raised in the thread."""
        for future in self._futures:
            future.result()
        self._writer.shutdown()
        return self._share

    def cancel(self, timeout_s: float) -> None:
        """Returns when no file is being written, and none will be, or after so many seconds."""
        self._writer.shutdown(wait=False, cancel_futures=True)
        wait([future for future in self._futures if not future.cancelled()], timeout_s)


def attempt(action: Callable[[], object]) -> str | None:
    """Acts; returns why storage refused it, or None. Any other error is a bug and propagates."""
    try:
        action()
        return None
    except (OSError, SafetensorError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
