"""The coordinator holds of the history what is still shown, and engines see what they would see of all."""

import numpy as np

from srft_ray.config.rollout import RolloutSection
from srft_ray.data.history import SMALLEST, VISIT, PromptHistory
from srft_ray.sync.history import HistoryPieces
from srft_ray.train.history import STEPS_IN_PIECES, HistoryKeeper
from tests.unit.test_history import Handle, ranks

__all__ = ["ranks"]  # the fixture

ROWS = 50
STEPS = 400


def held(handle: Handle) -> int:
    """Visits in the coordinator's memory."""
    return sum(map(len, handle.coordinator.history.since(0)))


def follow(handle: Handle, history: PromptHistory) -> None:
    """What an engine's actor does."""
    _, until, pieces = handle.history_since.remote(history.until)
    history.extend(until, np.concatenate(pieces))


def test_the_memory_of_the_coordinator_does_not_grow_with_the_steps(ranks):
    handle = Handle()
    keeper = HistoryKeeper(ROWS, RolloutSection(), handle, handle.generation)
    whole, beside, late = (PromptHistory(ROWS, 1) for _ in range(3))
    largest = 0
    for step in range(STEPS):
        visited = range(step % 2, ROWS, 2)
        ranks.others = [(row, (row, step, 4, (step + row) % 5, 0, 0, 0)) for row in visited]
        keeper.add(step, [])
        whole.extend(step + 1, np.array([visit for _, visit in ranks.others], VISIT))
        largest = max(largest, held(handle))
        follow(handle, beside)
        if step % (2 * STEPS_IN_PIECES) == 0:
            follow(handle, late)
    assert largest <= SMALLEST + ROWS * STEPS_IN_PIECES < ROWS // 2 * STEPS
    follow(handle, late)
    new = PromptHistory(ROWS, 1)
    follow(handle, new)
    for row in range(ROWS):
        expected = whole.visits(row, STEPS)
        assert expected == beside.visits(row, STEPS) == late.visits(row, STEPS) == new.visits(row, STEPS)


def test_pieces_are_replaced_as_a_whole_or_not_at_all():
    pieces = HistoryPieces()
    for first, until in ((0, 3), (3, 4), (4, 6)):
        pieces.add(first, until, f"to {until}")
    pieces.compact(5, "a part")
    assert pieces.since(0) == ["to 3", "to 4", "to 6"]
    pieces.compact(4, "short")
    assert pieces.since(0) == pieces.since(3) == ["short", "to 6"] and pieces.since(4) == ["to 6"]
    assert pieces.until == 6
