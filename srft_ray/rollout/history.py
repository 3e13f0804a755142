"""An actor's copy of the history of prompts."""

import threading
import time
from typing import Any

import numpy as np
import ray

from srft_ray.data.history import PromptHistory
from srft_ray.sync.admission import wait_for_admission

PAUSE_S = 0.2  # before the coordinator is asked again


class CoordinatorHistory:
    """Brings the history up to the step that a group asks for. It is called from several threads."""

    def __init__(
        self, coordinator: Any, rows: int, lag: int, generation: int, timeout_s: float, together: str = ""
    ) -> None:
        """`generation`: of the learners' start whose history it is. `together`: as `wait_for_admission`."""
        self.history = PromptHistory(rows, lag)
        self.coordinator = coordinator
        self.lag = lag
        self.generation = generation
        self.timeout_s = timeout_s
        self.together = together
        self._lock = threading.Lock()

    def __call__(self, before: int) -> PromptHistory:
        """The history of at least all steps before `before`.

        Raises:
            TimeoutError: it did not come, and neither learners nor engines came forward.
        """
        deadline = time.monotonic() + self.timeout_s
        while not self._reaches(before):
            # It is there before the weights that follow from these steps. They admit the group of the step
            # that asks.
            asking_step = before - 1 + self.lag
            about = self.generation, asking_step, False, self.timeout_s, self.together
            wait_for_admission(self.coordinator, *about)
            if self._reaches(before):
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"The history of prompts before step {before} has not come.")
            time.sleep(PAUSE_S)
        return self.history

    def _reaches(self, before: int) -> bool:
        """Whether the copy, brought up to date, reaches so far."""
        with self._lock:
            if self.history.until < before:
                self._fetch()
            return self.history.until >= before

    def _fetch(self) -> None:
        answer = ray.get(self.coordinator.history_since.remote(self.history.until))
        generation, until, pieces = answer
        # Another start of the learners has a history of its own, and actors of its own.
        if pieces and generation == self.generation:
            self.history.extend(until, np.concatenate(pieces))
