"""What happened to each prompt in earlier steps, and the choice of prompts by it.

A visit is a pure function of the rows that its group has in the ledger. What a group of step s may know of
its prompt are the visits of the steps before s + 1 - lag, where lag is larger than rollout.max_staleness.
Learners have finished these steps before the group may start, so that the choice of a prompt does not depend
on when it is made.
"""

import io
import random
import threading
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from algorithms import Algorithm, Visit
from srft_ray.data.store import shuffled

# The fields behind the row are those of `Visit`, in its order. There are millions of entries, of which every
# actor has a copy.
VISIT = np.dtype(
    [
        ("row", "<i4"),
        ("step", "<i4"),
        ("rollouts", "<u1"),
        ("correct", "<u1"),
        ("prefixed", "<u1"),
        ("prefixed_correct", "<u1"),
        ("prefix", "<u2"),
    ]
)
VISITS_SHOWN = 4  # the newest visits of a prompt that are shown; older ones are removed
GROWTH = 1.25  # of the memory for visits
SMALLEST = 2**12  # visits that memory is held for
PIECE = 2**16  # visits that are looked at together when old ones are removed

OTHER_CANDIDATES = 63  # prompts that are tried for a place in a step after its own
# Positions from here on are those of candidates. No step and no refill reaches them.
FIRST_CANDIDATE = 2**52


class PromptHistory:
    """The visits of every prompt, by the number of its prepared row.

    They are held in the order of their steps. Each one names the one before it of the same row.
    """

    def __init__(self, rows: int, lag: int) -> None:
        """`rows`: prepared rows. `lag`: steps that a group's view of the history is behind its own step."""
        self.until = 0  # the visits of all steps before this one are here
        self._lag = lag
        self._size = 0
        self._removal_size = SMALLEST
        self._visits = np.empty(SMALLEST, VISIT)
        self._previous = np.empty(SMALLEST, np.int32)
        self._last = np.full(rows, -1, np.int32)
        # Several threads of an actor read it.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._size

    @property
    def nbytes(self) -> int:
        """Memory of the tables, in bytes."""
        return self._visits.nbytes + self._previous.nbytes + self._last.nbytes

    def extend(self, until: int, visits: np.ndarray) -> None:
        """Adds the visits of the steps before `until`, ordered by step; those that are here already count
        once.

        Args:
            visits: of dtype VISIT.
        """
        with self._lock:
            self._append(visits[visits["step"] >= self.until])
            self.until = max(self.until, until)
            if self._size > self._removal_size:
                self._remove_hidden()

    def visits(self, row: int, before: int) -> tuple[Visit, ...]:
        """The newest visits of a row in the steps before `before`, at most VISITS_SHOWN, oldest first.

        Raises:
            ValueError: the history of some of these steps is not here yet.
        """
        with self._lock:
            if before > self.until:
                raise ValueError(
                    f"the history reaches to step {self.until} and is asked for step {before - 1}"
                )
            found: list[Visit] = []
            index = int(self._last[row])
            while index >= 0 and len(found) < VISITS_SHOWN:
                _, *fields = self._visits[index].item()
                visit = Visit(*fields)
                if visit.step < before:
                    found.append(visit)
                index = int(self._previous[index])
            return tuple(reversed(found))

    def between(self, first: int, end: int) -> np.ndarray:
        """The visits of the steps from `first` to before `end`, a copy."""
        with self._lock:
            return self._visits[self._position(first) : self._position(end)].copy()

    def to_bytes(self) -> bytes:
        """All visits that may still be shown, for a checkpoint. They do not depend on earlier removals."""
        with self._lock:
            self._remove_hidden()
        file = io.BytesIO()
        np.save(file, self.between(0, self.until), allow_pickle=False)
        return file.getvalue()

    def _append(self, visits: np.ndarray) -> None:
        first, end = self._size, self._size + len(visits)
        if end > len(self._visits):
            capacity = int(end * GROWTH)
            self._visits = _enlarged(self._visits, capacity)
            self._previous = _enlarged(self._previous, capacity)
        self._visits[first:end] = visits
        # Visits of one row stand next to each other in this order, oldest first.
        order = np.argsort(visits["row"], kind="stable").astype(np.int32)
        rows = visits["row"][order]
        goes_on = rows[1:] == rows[:-1]
        begins = np.concatenate([[True], ~goes_on])[: len(rows)]
        ends = np.concatenate([~goes_on, [True]])[: len(rows)]
        previous = self._previous[first:end]
        previous[order[1:][goes_on]] = order[:-1][goes_on] + first
        previous[order[begins]] = self._last[rows[begins]]
        self._last[rows[ends]] = order[ends] + first
        self._size = end

    def _remove_hidden(self) -> None:
        """Removes the visits that no view of the history shows any more. It works in place, piece by piece,
        so that it needs little memory."""
        # No group that is still to be chosen sees the history as of an earlier step.
        settled = self._position(self.until + 1 - self._lag)
        shown = np.ones(self._size, bool)
        shown[:settled] = _newest(self._visits["row"][:settled], len(self._last))
        self._size = 0
        self._last.fill(-1)
        for begin in range(0, len(shown), PIECE):
            of_piece = shown[begin : begin + PIECE]
            self._append(self._visits[begin : begin + len(of_piece)][of_piece])
        self._removal_size = max(SMALLEST, int(self._size * GROWTH))

    def _position(self, step: int) -> int:
        """Where the visits of `step` begin."""
        return bisect_left(range(self._size), step, key=lambda index: self._visits["step"][index])


def history_of_bytes(content: bytes, until: int, rows: int, lag: int) -> PromptHistory:
    """The history that `PromptHistory.to_bytes` wrote when its steps reached to before `until`."""
    history = PromptHistory(rows, lag)
    history.extend(until, np.load(io.BytesIO(content), allow_pickle=False))
    return history


def _enlarged(array: np.ndarray, capacity: int) -> np.ndarray:
    larger = np.empty(capacity, array.dtype)
    larger[: len(array)] = array
    return larger


def _newest(rows: np.ndarray, count: int) -> np.ndarray:
    """Which entries are among the last VISITS_SHOWN of their row number, bool; there are `count` numbers."""
    later = np.zeros(count, np.uint8)  # entries of each number in later pieces, as far as they matter
    shown = np.empty(len(rows), bool)
    for begin in reversed(range(0, len(rows), PIECE)):
        # From the newest entry to the oldest.
        of_piece = rows[begin : begin + PIECE][::-1]
        newer = later[of_piece] + _earlier_equal(of_piece)
        shown[begin : begin + PIECE] = (newer < VISITS_SHOWN)[::-1]
        # Of equal numbers the last assignment, that of the oldest entry, counts.
        later[of_piece] = np.minimum(newer + 1, VISITS_SHOWN)
    return shown


def _earlier_equal(values: np.ndarray) -> np.ndarray:
    """How many earlier entries each entry is equal to."""
    order = np.argsort(values, kind="stable")
    in_order = values[order]
    first_equal = np.searchsorted(in_order, in_order)
    found = np.empty(len(values), np.int64)
    found[order] = np.arange(len(values)) - first_equal
    return found


@dataclass(frozen=True)
class Choice:
    """The prompt of a place in a step.

    Attributes:
        row: number of the prepared row.
        visits: what its algorithm knows of it.
        passed_over: prompts that the algorithm did not keep before it kept this one.
        replays: whether a correct rollout of one of these visits is trained on again.
    """

    row: int
    visits: tuple[Visit, ...] = ()
    passed_over: int = 0
    replays: bool = False


@dataclass(frozen=True)
class Chooser:
    """Chooses prompts by their history: a pure function of seed, place and the history before a step.

    Attributes:
        rows: prepared rows.
        seed: of the run.
    """

    rows: int
    seed: int

    def choose(
        self, algorithm: Algorithm, step: int, place: int, history: PromptHistory, before: int
    ) -> Choice:
        """The first candidate for a place that the algorithm keeps; the prompt of the place itself if it
        keeps none.

        Args:
            step: of the run.
            place: position in the seeded order of prompts.
            before: the algorithm sees the visits of the steps before this one.
        """
        own_row = shuffled(place, self.rows, self.seed)[1]
        own = Choice(own_row, history.visits(own_row, before))
        rng = random.Random(f"{self.seed}/keeps/{place}")
        if algorithm.keeps(own.visits, step, rng):
            return own
        for number, row in enumerate(self._others(place), start=1):
            visits = history.visits(row, before)
            if algorithm.keeps(visits, step, rng):
                return Choice(row, visits, number)
        return own

    def _others(self, place: int) -> Iterator[int]:
        """The rows that are tried after that of the place itself."""
        # Neighbouring positions, so that they need the permutations of few epochs.
        first = FIRST_CANDIDATE + place * OTHER_CANDIDATES
        for position in range(first, first + OTHER_CANDIDATES):
            yield shuffled(position, self.rows, self.seed)[1]
