"""The lock on a run directory: one process trains in it, wherever that process runs."""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from srft_ray.errors import UserError, require
from srft_ray.sync.processes import Process, start_time

LOCK = ".lock"
HEARTBEAT_INTERVAL_S = 5.0
SILENCE_S = 3 * HEARTBEAT_INTERVAL_S  # without a heartbeat, for the owner on another machine to count as dead


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        started: start time of the process in clock ticks since the machine's boot; a process id may be used
        again. boot: id of the machine's boot.
        beats: number of heartbeats so far.
    """

    host: str
    pid: int
    started: int
    boot: str
    beats: int = 0

    @classmethod
    def this_process(cls) -> "Owner":
        return cls(socket.gethostname(), os.getpid(), start_time(os.getpid()), _boot_id())

    @property
    def is_here(self) -> bool:
        """Whether the process was started on this machine since its last boot."""
        return self.boot == _boot_id()

    @property
    def is_alive(self) -> bool:
        """Of a process on this machine."""
        return self.is_here and Process(self.pid, self.started).is_alive


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Makes the run directory this process's own for the length of the context.

    The file system's lock decides where it works, and is released by the system however the process ends.
    Some network file systems grant it twice: so the file also names its owner, who writes a heartbeat into
    it. If the context ends with a UserError, the file and directories that were made for the lock are removed
    again.

    Raises:
        UserError: another process trains in the directory.
    """
    made = _make_directory(run_dir)
    path = run_dir / LOCK
    if not path.exists():
        made.append(path)
    try:
        with path.open("a+") as file:
            _take(file, run_dir)
            stop = threading.Event()
            thread = threading.Thread(target=_beat, args=(file, stop), name="lock-heartbeat", daemon=True)
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join()
                _write(file, None)
    except UserError:
        _remove(made)
        raise


def _make_directory(run_dir: Path) -> list[Path]:
    """Returns the directories that were not there, the outermost first."""
    made = [path for path in (run_dir, *run_dir.parents) if not path.exists()][::-1]
    check_path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    return made


def check_path(run_dir: Path) -> None:
    """Raises UserError if a file is where the run directory, or a directory above it, would be."""
    for path in (run_dir, *run_dir.parents):
        require(
            path.is_dir() or not path.exists(),
            f"{path} is not a directory, so that the run directory {run_dir} cannot be made: choose another "
            "run.dir or run.name.",
        )


def _remove(made: list[Path]) -> None:
    """Removes the file and the directories, the last first; a directory that holds something else stays."""
    for path in reversed(made):
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


def _take(file: IO[str], run_dir: Path) -> None:
    refusal = UserError(
        f"Another process trains in the run directory {run_dir}: wait for its end or choose another run.name."
    )
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise refusal from None
    # The file system's lock was granted. Where it means nothing, the owner in the file still does.
    owner = _read(file)
    if owner and _is_active(file, owner):
        raise refusal
    _write(file, Owner.this_process())


def _is_active(file: IO[str], owner: Owner) -> bool:
    """Whether the owner that the file names still lives.

    Of one on another machine only its heartbeats are seen: two looks tell, whatever the clocks of the
        machines say.
    """
    if owner.is_here:
        return owner.pid != os.getpid() and owner.is_alive
    deadline = time.monotonic() + SILENCE_S
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if _read(file) != owner:
            return True
    return False


def _beat(file: IO[str], stop: threading.Event) -> None:
    owner = Owner.this_process()
    beats = 0
    while not stop.wait(HEARTBEAT_INTERVAL_S):
        beats += 1
        with suppress(OSError):  # a full disk; the file system's lock still holds
            _write(file, Owner(owner.host, owner.pid, owner.started, owner.boot, beats))


def _read(file: IO[str]) -> Owner | None:
    """The owner that the file names; None for an empty file, or one of an earlier release."""
    file.seek(0)
    try:
        return Owner(**json.loads(file.read()))
    except (ValueError, TypeError):
        return None


def _write(file: IO[str], owner: Owner | None) -> None:
    file.seek(0)
    file.truncate()
    if owner:
        file.write(json.dumps(asdict(owner)))
    file.flush()


def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()
