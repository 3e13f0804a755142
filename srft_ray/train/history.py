"""The learners' part in the history of prompts: it is made from the groups of each step, given to the engines
before the weights that follow from it, and written into checkpoints.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch.distributed as dist
from ray.exceptions import RayError

from algorithms import CORRECT_ABOVE, Completion, Group
from srft_ray.config.rollout import RolloutSection
from srft_ray.data.history import VISIT, PromptHistory, history_of_bytes
from srft_ray.sync.transport import insist
from srft_ray.sync.versions import OutdatedLearners
from srft_ray.train.checkpoint import CheckpointStore

FILE = "history.npy"  # of a checkpoint
LONGEST_PREFIX = np.iinfo(VISIT["prefix"]).max  # that is told apart from longer ones, in tokens
CHECK_INTERVAL_S = 0.5  # between checks whether the coordinator still has the history
# Engines that are not further behind get what is new in small pieces.
STEPS_IN_PIECES = 32


def visits_of(groups: Sequence[Group]) -> list[tuple[int, tuple[int, ...]]]:
    """(group_id, entry of dtype VISIT) of each group of which rollouts entered the update.

    Only these are counted, so that the rows of the ledger determine the visit.
    """
    found = []
    for group in groups:
        rollouts = [completion for completion in group.trained if completion.origin == "rollout"]
        if rollouts:
            found.append((group.group_id, (group.row, *_visit(group.step, rollouts))))
    return found


def _visit(step: int, rollouts: Sequence[Completion]) -> tuple[int, ...]:
    """The fields of `Visit`. A rollout that continues a demonstration says nothing of what the policy can do
    by itself, and is counted apart."""
    plain = [rollout for rollout in rollouts if not rollout.prefix]
    prefixed = [rollout for rollout in rollouts if rollout.prefix]
    longest = max((rollout.prefix for rollout in prefixed), default=0)
    return step, len(plain), _correct(plain), len(prefixed), _correct(prefixed), min(longest, LONGEST_PREFIX)


def _correct(rollouts: Sequence[Completion]) -> int:
    return sum(rollout.reward > CORRECT_ABOVE for rollout in rollouts)


class HistoryKeeper:
    """The history of prompts, which rank 0 holds. `add` is a collective.

    Without rows, because no algorithm of the run uses the history, the methods do nothing.
    """

    def __init__(self, rows: int, rollout: RolloutSection, coordinator: Any, generation: int) -> None:
        """`rows`: prepared rows. `generation`: of the learners' start."""
        self.rows = rows
        self.lag = rollout.max_staleness + 1
        self.history = PromptHistory(rows, self.lag)
        self.coordinator = coordinator
        self.generation = generation
        self.timeout_s = rollout.timeout_s
        self.holds = rows > 0 and dist.get_rank() == 0
        self._sent = 0  # visits that the coordinator holds
        self._sending = threading.Lock()

    def begin(self, store: CheckpointStore, step: int) -> None:
        """Takes up the history of the checkpoint of `step`, and gives it to the coordinator."""
        if not self.holds:
            return
        if step > 0:
            with store.files.open_input_file(store.path(step, FILE)) as file:
                self.history = history_of_bytes(file.read(), step, self.rows, self.lag)
        self._send()
        # The coordinator may die, and those who wait for it may be those whom this learner waits for.
        threading.Thread(target=self._send_again, name="history", daemon=True).start()

    def add(self, step: int, groups: Sequence[Group]) -> None:
        """Adds what happened to the prompts of a step."""
        if not self.rows:
            return
        shares: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(shares, visits_of(groups))
        if not self.holds:
            return
        # The order does not depend on which rank had which group.
        found = sorted(visit for share in shares for visit in share)
        self.history.extend(step + 1, np.array([visit for _, visit in found], VISIT))
        self._send()

    def content(self) -> dict[str, bytes]:
        """What this rank writes into a checkpoint: the file and its bytes."""
        return {FILE: self.history.to_bytes()} if self.holds else {}

    def _send(self) -> None:
        """Gives the coordinator the steps that it does not have.

        Raises:
            OutdatedLearners: other learners have taken the place of these.
            TimeoutError: the coordinator did not take them.
        """
        insist(self._send_missing, "the history of prompts", self.timeout_s)

    def _send_missing(self) -> None:
        with self._sending:
            first: int = ray.get(self.coordinator.history_until.remote(self.generation))
            until = self.history.until
            if first < until:
                piece = self.history.between(first, until)
                ray.get(self.coordinator.add_history.remote(self.generation, first, until, piece))
                self._sent = len(piece) + (self._sent if first else 0)
                self._compact(until - STEPS_IN_PIECES)

    def _compact(self, until: int) -> None:
        """Has the coordinator forget what is not shown of the steps before `until`, once that is most."""
        if until > 0 and self._sent > 2 * len(self.history):
            piece = self.history.between(0, until)
            ray.get(self.coordinator.compact_history.remote(self.generation, until, piece))
            self._sent = len(self.history)

    def _send_again(self) -> None:
        while True:
            time.sleep(CHECK_INTERVAL_S)
            try:
                self._send_missing()
            except OutdatedLearners:
                return
            except (RuntimeError, RayError):
                continue  # it is tried again
