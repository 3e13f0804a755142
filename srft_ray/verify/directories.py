"""The temporary directories that verifiers work in. A verifier may have done anything to its own."""

import os
import subprocess
import tempfile
from contextlib import suppress
from glob import escape, glob

from srft_ray.verify import sandbox

REMOVE_S = 0.3  # for the supervisor to wait; what takes longer is left to the end of the pool


def make_pool_directory(token: str, namespaces: bool) -> str:
    """For the workers' directories. In namespaces it is a tmpfs that only they see and that ends there."""
    if namespaces:
        return sandbox.SHARED_MEMORY
    return tempfile.mkdtemp(prefix=_prefix(token))


def remove_pool_directories(token: str) -> None:
    """Remove the pool's directories from the file system."""
    pattern = os.path.join(escape(tempfile.gettempdir()), _prefix(token) + "*")
    for path in glob(pattern):
        _remove(os.path.dirname(path), [os.path.basename(path)])


def _prefix(token: str) -> str:
    return f"srft_ray_verifier_{token}_"


class WorkerDirectory:
    """One worker's directory, held open: the verifier may put a link in its place."""

    def __init__(self, parent: str, namespaces: bool) -> None:
        self.path = tempfile.mkdtemp(prefix="worker_", dir=parent)
        if namespaces:
            sandbox.mount_tmpfs(self.path, sandbox.FILES_MIB)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        self._seen = self._state()
        self.usable = True

    def empty(self) -> bool:
        """Remove what is in it. False where it cannot be used any more, and the worker needs another."""
        if self._state() != self._seen:
            names = self._names()
            if names:
                os.fchmod(self.fd, 0o700)
                self.usable = _remove(f"/proc/self/fd/{self.fd}", names, REMOVE_S)
            self._seen = self._state()
            self.usable = self.usable and self._is_in_place()
        return self.usable

    def close(self) -> None:
        os.close(self.fd)

    def _is_in_place(self) -> bool:
        with suppress(OSError):
            return os.path.samestat(os.lstat(self.path), os.fstat(self.fd))
        return False

    def _state(self) -> tuple[int, ...]:
        """Differs from an earlier one if an entry was made or removed since; one system call."""
        status = os.fstat(self.fd)
        return status.st_mtime_ns, status.st_size, status.st_nlink

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.fd)
        except FileNotFoundError:  # the verifier removed it
            return []


def _remove(folder: str, names: list[str], timeout_s: float | None = None) -> bool:
    """Whether all is gone. By `rm`, which follows no link and has no limit of depth."""
    paths = [f"./{name}" for name in names]
    remove = ["rm", "-rf", "--", *paths]
    make_writable = ["chmod", "-R", "u+rwX", "--", *paths]
    try:
        if _run(remove, folder, timeout_s) == 0:
            return True
        _run(make_writable, folder, timeout_s)
        return _run(remove, folder, timeout_s) == 0
    except (subprocess.TimeoutExpired, OSError):  # many or deep folders; or too many names for one command
        return False


def _run(command: list[str], folder: str, timeout_s: float | None) -> int:
    return subprocess.run(command, cwd=folder, stderr=subprocess.DEVNULL, timeout=timeout_s).returncode
