"""The way of the history of prompts from the learners to the actors that choose prompts."""

from typing import Any


class HistoryPieces:
    """What happened to prompts, in pieces of consecutive steps. What is in a piece is not looked at."""

    def __init__(self) -> None:
        self.until = 0  # the pieces cover the steps before this one
        self._pieces: list[tuple[int, Any]] = []

    def restart(self) -> None:
        """New learners start: they give the history of their checkpoint."""
        self.until = 0
        self._pieces = []

    def add(self, first: int, until: int, piece: Any) -> None:
        """Takes the steps from `first` to before `until`; steps that are here already are left out.

        Raises:
            RuntimeError: steps before `first` are missing, because the process that held them died.
        """
        if first > self.until:
            raise RuntimeError(f"the history ends at step {self.until}, and a piece begins at step {first}")
        if first == self.until:
            self.until = until
            self._pieces.append((until, piece))

    def compact(self, until: int, piece: Any) -> None:
        """Replaces the pieces of the steps before `until` by one that shows the same, if one of them ends
        there."""
        if any(end == until for end, _ in self._pieces):
            later = [(end, one) for end, one in self._pieces if end > until]
            self._pieces = [(until, piece), *later]

    def since(self, step: int) -> list[Any]:
        """All pieces with steps from `step` on; the first may begin before it."""
        return [piece for until, piece in self._pieces if until > step]
