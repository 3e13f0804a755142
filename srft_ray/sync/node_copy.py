"""One copy of published weights in the shared memory of a node, for all engines there that load them.

A path belongs to whoever holds a lock on it, and any process removes what nobody holds. The locks are those
of the file system (`flock`): the system releases them however their holder ends, and they hold between
containers that share the memory but not the numbers of processes.
"""

import errno
import fcntl
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
PREFIX = "srft_ray_weights_"  # of everything that is made here
PART = ".part_"  # in the name of a folder that is not whole: it is being written, or removed
POLL_INTERVAL_S = 0.01  # between questions whether another process has written
LOOKS = 10  # at what it has written so far, before it is not waited for any more


@contextmanager
def node_copy(key: str, write: Callable[[Path], None], patience_s: float) -> Iterator[Path]:
    """A folder with the files that `write(folder)` makes, for the length of the context.

    The first process that asks for `key` writes them; others wait for it and use the same folder. If it is
    killed, fails or hangs, the next one writes them anew. The last one that leaves removes the folder.

    Args:
        key: names the content of the files; who asks for the same key accepts the same files.
        patience_s: for which another process may write nothing until it is not waited for any more.

    Raises:
        Exception: what `write` raised in this process.
    """
    folder = shared_memory() / f"{PREFIX}{os.getuid()}_{key}"
    remove_leftovers(folder)
    descriptor = hold(folder)
    while descriptor is None:
        descriptor = _written(folder, write, patience_s)
    try:
        yield folder
    finally:
        os.close(descriptor)
        remove_if_free(folder)


def memory_id() -> str:
    """Names the shared memory of this process: equal for processes that find each other's copies there."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    machine = boot.read_text().strip() if boot.exists() else platform.node()
    found = os.stat(shared_memory())
    return f"{machine}:{found.st_dev}:{found.st_ino}"


def _written(folder: Path, write: Callable[[Path], None], patience_s: float) -> int | None:
    """Writes the folder unless another process did so meanwhile; the descriptor that holds it.

    None if the other one has removed it again.
    """
    with _only_writer(folder, patience_s) as is_writer:
        if not is_writer:
            return hold(folder)
        part, descriptor = _make_part(folder)
        try:
            write(part)
            # Whoever finds the folder finds it whole.
            part.rename(folder)
        except BaseException as error:
            os.close(descriptor)
            shutil.rmtree(part)
            # A process that did not wait for this one any more was faster.
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return hold(folder)
            raise
        return descriptor


def _make_part(folder: Path) -> tuple[Path, int]:
    """A new folder beside `folder`, and the descriptor that holds it."""
    while True:
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}{PART}", dir=folder.parent))
        # Until it is held, another process may take it for a leftover and remove it.
        descriptor = hold(part)
        if descriptor is not None:
            return part, descriptor


@contextmanager
def _only_writer(folder: Path, patience_s: float) -> Iterator[bool]:
    """Waits until no other process is in this context for the same folder, or the one that is there hangs;
    gives whether this process is to write: not if the folder is there meanwhile."""
    path = folder.with_name(f"{folder.name}.lock")
    descriptor = _wait_for_lock(path, folder, patience_s)
    if descriptor is None:
        yield False
        return
    try:
        yield not folder.exists()
    finally:
        # A process that did not wait for this one any more has a lock of its own there.
        if is_at(descriptor, path):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _wait_for_lock(path: Path, folder: Path, patience_s: float) -> int | None:
    """A descriptor that holds the lock; None if the folder is there meanwhile."""
    seen = _written_so_far(folder)
    since = looked = time.monotonic()
    while not folder.exists():
        descriptor = _lock(path)
        if descriptor is not None:
            return descriptor
        time.sleep(POLL_INTERVAL_S)
        now = time.monotonic()
        if now - looked < patience_s / LOOKS:
            continue
        looked, written = now, _written_so_far(folder)
        if written != seen:
            seen, since = written, now
        elif now - since > patience_s:
            # Two may write then; the first one that is whole gets the name.
            path.unlink(missing_ok=True)
            since = now
    return None


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock of that path; None while another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    # Its holder may have removed it meanwhile, and a third one may have made it anew.
    if lock_if_free(descriptor) and is_at(descriptor, path):
        return descriptor
    os.close(descriptor)
    return None


def _written_so_far(folder: Path) -> list[tuple[str, int, int]]:
    """Changes whenever a process writes for the folder."""
    with suppress(FileNotFoundError):
        files = [(str(file), file.stat()) for file in folder.parent.glob(f"{folder.name}{PART}*/*")]
        return sorted((name, found.st_size, found.st_mtime_ns) for name, found in files)
    return []


def hold(folder: Path) -> int | None:
    """A descriptor that keeps the folder where it is until it is closed; None if there is no such folder."""
    with suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if is_at(descriptor, folder):
            return descriptor
        os.close(descriptor)
    return None


def remove_leftovers(wanted: Path | None = None) -> None:
    """Removes what processes left that were killed; `wanted` is whole if it is there, and stays."""
    for path in shared_memory().glob(f"{PREFIX}*"):
        if path != wanted:
            remove_if_free(path)


def remove_if_free(path: Path) -> None:
    """Removes a file or a folder unless a process holds it."""
    # Another process was faster, or it belongs to another user.
    with suppress(FileNotFoundError, PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if lock_if_free(descriptor) and is_at(descriptor, path):
                _remove(path)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if not path.is_dir():
        path.unlink()
        return
    # If this process is killed meanwhile, nobody is to take what is left for the whole.
    if PART not in path.name:
        path = path.rename(path.with_name(f"{path.name}{PART}{uuid.uuid4().hex}"))
    shutil.rmtree(path)


def lock_if_free(descriptor: int) -> bool:
    """Whether nobody else holds the file or folder; then this process alone does."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the path still leads to what the descriptor was opened for."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def shared_memory() -> Path:
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
