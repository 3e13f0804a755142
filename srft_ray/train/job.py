"""What the driver gives to each learner: its job, and the blocks of groups that it trains on."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train

from algorithms import Algorithm, Group
from srft_ray.config.rollout import RolloutSection
from srft_ray.config.schema import ModelSection
from srft_ray.config.training import LearnerSection, TrainerSection
from srft_ray.data.blocks import groups_of
from srft_ray.data.plan import Segment, StreamPlan
from srft_ray.data.reader import GroupReader
from srft_ray.observe.loggers import LoggerSettings
from srft_ray.train.checkpoint import CheckpointStore

POLL_INTERVAL_S = 0.5  # between checks for a leave request while there is nothing to train on
LEAVE_WAIT_S = 30.0  # that the coordinator may take for the answer whether a waiting learner is to leave


@dataclass(frozen=True)
class Job:
    """Everything that a learner needs, resolved by the driver.

    Attributes:
        run_id: written into every checkpoint.
        reader: reads the groups of evaluation sets.
        uses_engines: whether weights are published to rollout engines.
        coordinator: handle of the coordinator's actor.
        dtype: name of the number format.
        threads: CPU threads of a learner; None on GPUs.
        is_preempted: whether this learner was told that its machine is taken away.
        parameters: of the model.
        ledger_tokens: whether the ledger has the columns of each token.
        history_rows: prompts whose history is kept; 0 if the algorithm does not use it.
    """

    run_dir: Path
    run_id: str
    seed: int
    model: ModelSection
    rollout: RolloutSection
    learner: LearnerSection
    trainer: TrainerSection
    algorithm: Algorithm
    uses_engines: bool
    plan: StreamPlan
    reader: GroupReader
    store: CheckpointStore
    coordinator: Any
    loggers: LoggerSettings
    dtype: str
    threads: int | None
    is_preempted: Callable[[], bool]
    parameters: int
    ledger_tokens: bool = False
    history_rows: int = 0


class LeaveQuestion:
    """Whether a learner is to leave: the driver, a resize, or the loss of its machine asks it to."""

    def __init__(self, coordinator: Any, is_preempted: Callable[[], bool]) -> None:
        self._coordinator = coordinator
        self._is_preempted = is_preempted
        self._answer: ray.ObjectRef | None = None

    def ask(self) -> bool:
        return self._is_preempted() or bool(ray.get(self._coordinator.leave_requested.remote()))

    def look(self) -> bool:
        """The same for a learner that looks again and again: the coordinator answers when it has to.

        Hundreds of learners that ask twice a second would keep it busy.
        """
        if self._is_preempted():
            return True
        self._answer = self._answer or self._coordinator.leave_requested.remote(LEAVE_WAIT_S)
        if not ray.wait([self._answer], timeout=0)[0]:
            return False
        reason = ray.get(self._answer)
        self._answer = None
        return bool(reason)


def blocks_of_this_learner(block: int) -> Iterator[dict[str, Any]]:
    """The learner's shard of the stream, in blocks of `block` groups."""
    shard = ray.train.get_dataset_shard("train")
    return iter(shard.iter_batches(batch_size=block, prefetch_batches=0, batch_format="numpy"))


class Batches:
    """This learner's blocks; the stream's execution begins at once, not when the first block is asked for.

    Attributes:
        groups: taken by all learners since they started.
    """

    def __init__(self, blocks: Iterator[dict[str, Any]]) -> None:
        self.groups = 0
        self._batches = blocks
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: Future[dict[str, Any]] | None = self._thread.submit(next, self._batches)

    def next(self, wait_s: float) -> dict[str, Any] | None:
        """The next block; None if it is not there within `wait_s` seconds."""
        self._next = self._next or self._thread.submit(next, self._batches)
        if not wait([self._next], wait_s).done:
            return None
        block = self._next.result()
        self._next = None
        return block

    def take(
        self, segment: Segment, share: int, timeout_s: float, asked_to_leave: Callable[[], bool]
    ) -> list[Group] | None:
        """This rank's `share` of a segment's groups; None if the learners are to leave before it is complete.

        Raises:
            TimeoutError: naming what did not come within `timeout_s`.
        """
        progress_at = time.monotonic()
        groups = list[Group]()
        while len(groups) < share:
            block = self.next(POLL_INTERVAL_S)
            if block is not None:
                groups.extend(groups_of(block))
                progress_at = time.monotonic()
            elif asked_to_leave():
                return None
            elif time.monotonic() - progress_at > timeout_s:
                raise TimeoutError(
                    f"Step {segment.step}: a learner has {len(groups)} of {share} groups of "
                    f"{segment.dataset}, and none has come for rollout.timeout_s={timeout_s:.0f} s. The "
                    "engines are stuck, cannot be placed, or need longer."
                )
        strangers = {(g.dataset, g.step) for g in groups} - {(segment.dataset, segment.step)}
        if strangers:
            raise RuntimeError(f"The stream is out of order: {segment} received {sorted(strangers)}.")
        return groups
