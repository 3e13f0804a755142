"""Checkpoints that are written while training goes on (trainer.async_checkpoints).

What the checkpoint of a step holds is copied to CPU memory after the step. A thread of each rank writes the
copy. When all ranks have written theirs, which is asked before each step, the checkpoint gets its marker.
Until then there is no checkpoint of that step: a crash leaves the one before it.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from srft_ray.train.checkpoint import CheckpointFailed
from srft_ray.train.checkpoint_share import BackgroundShare
from srft_ray.train.saving import Saver

PATIENCE = 0.5  # of learner.timeout_s, with which the other ranks wait for one whose storage hangs


@dataclass(frozen=True)
class Unfinished:
    """A checkpoint that is being written, with what its manifest is to say.

    `deadline`: when it is to be written, as of time.monotonic.
    """

    step: int
    about: dict[str, Any]
    share: BackgroundShare
    deadline: float


class BackgroundSaver:
    """One rank's part; at most one checkpoint is being written. All methods but `close` are collectives."""

    def __init__(self, saver: Saver, timeout_s: float) -> None:
        """`timeout_s`: learner.timeout_s."""
        self.saver = saver
        self.timeout_s = PATIENCE * timeout_s
        self.unfinished: Unfinished | None = None

    def begin(self, step: int, about: dict[str, Any]) -> None:
        """Copies what the checkpoint of `step` is to hold, and has it written; the one before is settled.

        Raises:
            CheckpointFailed: too many failures in a row.
        """
        share = BackgroundShare()
        error = self.saver.start(step, share)
        if error is None:
            deadline = time.monotonic() + self.timeout_s
            self.unfinished = Unfinished(step, self.saver.described(about), share, deadline)
        else:
            self.saver.account(step, error, final=False)

    def settle(self, wait: bool) -> int | None:
        """The step whose checkpoint became complete; None if there is none, or it failed.

        `wait`: whether to wait until it is written.

        Raises:
            CheckpointFailed: as of `Saver.save`, or it was not written in time.
        """
        pending = self.unfinished
        if pending is None or not self._is_written(pending, wait):
            return None
        self.unfinished = None
        error = self.saver.commit(pending.step, pending.share.result(), pending.about)
        return pending.step if self.saver.account(pending.step, error, final=False) else None

    def _is_written(self, pending: Unfinished, wait: bool) -> bool:
        """Whether all ranks have written their files; raises as `settle`."""
        left = pending.deadline - time.monotonic()
        own = pending.share.is_written(max(0.0, left) if wait else 0.0)
        may_go_on = left > 0 and not wait
        known = torch.tensor([float(own), float(may_go_on)], device=self.saver.engine.device)
        dist.all_reduce(known, dist.ReduceOp.MIN)
        written, in_time = known.bool().tolist()
        if not written and not in_time:
            raise CheckpointFailed(
                f"The checkpoint of step {pending.step} was not written within {self.timeout_s:.0f} s, half "
                "of learner.timeout_s: its storage hangs or is too slow. The checkpoint of step "
                f"{self.saver.newest} is the newest."
            )
        return written

    def close(self) -> None:
        """Ends the writing, so that no file of it comes between those of other learners."""
        if self.unfinished:
            self.unfinished.share.cancel(self.timeout_s)
