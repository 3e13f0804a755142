"""Learners that come and go: they leave a checkpoint before Ray Train changes their number, so that nothing
is repeated.

Beside `data/loop` the only file that touches Ray's internals.
"""

import time
from collections.abc import Callable
from textwrap import shorten
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.controller.state import (
    PreemptingState,
    ResizingState,
    RestartingState,
    RunningState,
)

from srft_ray.errors import last_line
from srft_ray.sync.processes import Process

WAIT_S = 1.0  # between two looks for nodes


class CheckpointBeforeResize(ControllerCallback):
    """Runs in Ray Train's controller. Ray marks these callbacks as an interface for developers: it may
    change."""

    def __init__(self, coordinator: Any, timeout_s: float, report: Callable[[str, str], None]) -> None:
        """`report` is told (kind, message) of every change."""
        self.coordinator = coordinator
        self.timeout_s = timeout_s
        self.report = report

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        placed = isinstance(current_state, (RunningState, ResizingState, PreemptingState))
        self.coordinator.set_learners_present.remote(placed, Process.this())
        if not placed and type(previous_state) is type(current_state):
            time.sleep(WAIT_S)  # the controller looks for nodes again and again, without a pause of its own
        if isinstance(current_state, ResizingState):
            self._before_resize(current_state.scaling_decision.num_workers)
        elif isinstance(current_state, RestartingState):
            reason = shorten(last_line(current_state.training_failed_error), 200, placeholder=" …")
            self.report("learners", f"restarting after a failure: {reason}")

    def _before_resize(self, number: int) -> None:
        """Asks the present learners to leave with a checkpoint and waits for them."""
        in_time = ray.get(
            self.coordinator.request_leave.remote(f"a change to {number} learners", self.timeout_s)
        )
        consequence = ""
        if not in_time:
            consequence = (
                "; the present ones wrote no checkpoint within "
                f"trainer.resize_timeout_s={self.timeout_s:g}, steps will be repeated"
            )
        self.report("learners", f"continuing with {number} learners{consequence}")


def is_preempted() -> bool:
    """Whether this learner was told that its machine is taken away.

    Unlike `ray.train.get_preemption_info` it asks no other rank, so that a learner can look while it waits.
    """
    return get_train_context().preemption_context.preemption_info is not None
