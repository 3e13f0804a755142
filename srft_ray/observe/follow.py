"""Follows a run by the files that it writes, and tells listeners what is new."""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

from srft_ray.observe.callbacks import Callback
from srft_ray.observe.journal import (
    CHECKPOINTS,
    EVALUATIONS,
    EVENTS,
    METRICS,
    BadLine,
    end_of_steps,
    last_record,
    parse_line,
    record_event,
)

POLL_INTERVAL_S = 0.5
ANCHOR_BYTES = 256

Record = dict[str, Any]


class JournalTail:
    """Reads what is added to a file of records after this object was made.

    A file that does not exist is empty.

    The learners cut the file when they repeat steps. It is then read again from where its records can be
    new; some of them may have been read before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        last = last_record(path)
        self._step = last.get("step") if last else None  # of the last record that was read
        self._offset = 0  # what lies before it was read
        self._anchor = b""  # the last bytes before the offset
        if path.exists():
            with path.open("rb") as file:
                self._move(file, file.seek(0, os.SEEK_END))

    def read(self) -> tuple[list[Record], int]:
        """The new records, and how many new lines are none."""
        if not self.path.exists():
            return [], 0
        with self.path.open("rb") as file:
            if self._is_cut(file):
                self._move(file, self._last_safe_offset())
            file.seek(self._offset)
            added = file.read()
            whole = added.rfind(b"\n") + 1  # the last line may still be written
        self._offset += whole
        self._anchor = (self._anchor + added[:whole])[-ANCHOR_BYTES:]
        records, bad = self._parse(added[:whole])
        if records:
            self._step = records[-1].get("step")
        return records, bad

    def _parse(self, text: bytes) -> tuple[list[Record], int]:
        records, bad = [], 0
        for line in text.split(b"\n"):
            try:
                records.append(parse_line(line, self.path.name))
            except BadLine:
                bad += bool(line.strip())
        return records, bad

    def _is_cut(self, file: BinaryIO) -> bool:
        """Whether the file no longer holds what was read of it last."""
        if file.seek(0, os.SEEK_END) < self._offset:
            return True
        file.seek(self._offset - len(self._anchor))
        return file.read(len(self._anchor)) != self._anchor

    def _last_safe_offset(self) -> int:
        """Everything before it was read; what follows may be new."""
        return 0 if self._step is None else end_of_steps(self.path, self._step)

    def _move(self, file: BinaryIO, offset: int) -> None:
        self._offset = offset
        length = min(ANCHOR_BYTES, offset)
        file.seek(offset - length)
        self._anchor = file.read(length)


class FollowerThread:
    """Context manager: `_follow` runs in a thread for its length, and ends soon after `_done` is set."""

    def __init__(self, name: str) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Waits until everything that was written is told."""
        self._done.set()
        self._thread.join()

    def _follow(self) -> None:
        raise NotImplementedError


class RunFollower(FollowerThread):
    """Tells listeners in a thread what a run writes, each record once and in order.

    Attributes:
        failure: the first exception of a listener, or of the run's storage; None without one.
    """

    def __init__(
        self,
        run_dir: Path,
        listeners: Sequence[Callback],
        resume_from: int,
        on_failure: Callable[[str], object],
    ) -> None:
        """
        Args:
            resume_from: optimizer steps that the run has done; their records are not new.
            on_failure: called with a reason when a listener raises; it is to stop the run.
        """
        self.run_dir = run_dir
        self.failure: BaseException | None = None
        self._listeners = list(listeners)
        self._on_failure = on_failure
        self._tails = {
            name: JournalTail(run_dir / name) for name in (EVENTS, CHECKPOINTS, EVALUATIONS, METRICS)
        }
        saved = last_record(run_dir / CHECKPOINTS)
        # The newest that was told of each kind.
        self._step = resume_from - 1
        self._saved = saved["step"] if saved else 0
        self._evaluated = resume_from - 1
        self._sets = set[str]()  # those that were told of the step `_evaluated`
        self._found: list[tuple[int, int, str, Record]] = []
        super().__init__("run-follower")

    def raise_failure(self) -> None:
        """Raises what a listener raised, if one did."""
        if self.failure is not None:
            raise self.failure

    def _follow(self) -> None:
        while not self._done.wait(POLL_INTERVAL_S):
            with suppress(OSError):  # the storage is asked again at the next look
                self.poll()
        try:
            self.poll()
        except OSError as error:
            self._fail(error, f"the records of the run cannot be read ({error})")

    def poll(self) -> None:
        """Tells what is new."""
        # What follows from a step is read before the steps: a step is never told after its evaluation.
        for kind, name in enumerate((EVENTS, CHECKPOINTS, EVALUATIONS, METRICS)):
            records, bad = self._tails[name].read()
            self._found += [(_moment(name, record), -kind, name, record) for record in records]
            if bad:
                message = f"{bad} lines of {name} are not records: they are left out"
                self._found.append((-1, 0, EVENTS, {"kind": "journal", "message": message}))
        self._found.sort(key=lambda found: found[:2])
        while self._found:
            _, _, name, record = self._found.pop(0)
            if self._is_new(name, record):
                self._tell(name, record)

    def _is_new(self, name: str, record: Record) -> bool:
        """Whether the record was not told yet; repeated steps write theirs again."""
        if name == METRICS:
            new = record["step"] > self._step
            self._step = max(self._step, record["step"])
            return new
        if name == CHECKPOINTS:
            new = record["step"] > self._saved
            self._saved = max(self._saved, record["step"])
            return new
        if name == EVALUATIONS:
            return self._is_new_evaluation(record)
        return True

    def _is_new_evaluation(self, record: Record) -> bool:
        if record["step"] > self._evaluated:
            self._evaluated = record["step"]
            self._sets.clear()
        elif record["step"] < self._evaluated or record["set"] in self._sets:
            return False
        self._sets.add(record["set"])
        return True

    def _tell(self, name: str, record: Record) -> None:
        for listener in tuple(self._listeners):
            try:
                _call(listener, name, record)
            except BaseException as error:
                self._listeners.remove(listener)
                title = type(listener).__name__
                self._fail(error, f"the callback {title} raised {type(error).__name__}: {error}")

    def _fail(self, error: BaseException, reason: str) -> None:
        record_event(self.run_dir, "callback", f"{reason}; the run is stopped")
        self.failure = self.failure or error
        self._on_failure("an error in a callback")


def _moment(name: str, record: Record) -> int:
    """Optimizer steps done when the record was written; events are told first."""
    if name == EVENTS:
        return -1
    return record["step"] + (name == METRICS)


def _call(listener: Callback, name: str, record: Record) -> None:
    if name == METRICS:
        listener.on_step(record)
    elif name == EVALUATIONS:
        listener.on_evaluation(record)
    elif name == CHECKPOINTS:
        listener.on_checkpoint(record["step"], record["path"])
    else:
        listener.on_event(record)
