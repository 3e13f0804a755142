"""Learners that come and go: before Ray Train changes their number they leave a checkpoint, so that nothing is repeated."""

import os
import time
from pathlib import Path
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
from srft_ray.observe.journal import record_event

WAIT_S = 1.0  # between looks for nodes


class CheckpointBeforeResize(ControllerCallback):
    """Runs in Ray Train's controller. Ray marks these callbacks as an interface for developers and may change them with a release."""

    def __init__(self, coordinator: Any, timeout_s: float, run_dir: Path) -> None:
        self.coordinator, self.timeout_s, self.run_dir = coordinator, timeout_s, run_dir

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        placed = isinstance(current_state, (RunningState, ResizingState, PreemptingState))
        self.coordinator.learners.remote(placed, os.getpid())
        if not placed and type(previous_state) is type(current_state):
            time.sleep(WAIT_S)  # the controller looks for nodes again and again, without a pause of its own
        if isinstance(current_state, ResizingState):
            number = current_state.scaling_decision.num_workers
            in_time = ray.get(self.coordinator.leave.remote(f"a change to {number} learners", self.timeout_s))
            record_event(
                self.run_dir,
                "learners",
                f"continuing with {number} learners"
                + (
                    ""
                    if in_time
                    else f"; the present ones wrote no checkpoint within trainer.resize_timeout_s={self.timeout_s:g}, steps will be repeated"
                ),
            )
        elif isinstance(current_state, RestartingState):
            record_event(
                self.run_dir,
                "learners",
                "restarting after a failure: "
                + shorten(last_line(current_state.training_failed_error), 200, placeholder=" …"),
            )


def preempted() -> bool:
    """Whether this learner was told that a machine of theirs is taken away. Unlike `ray.train.get_preemption_info` it asks nobody,
    so that a learner can look while it waits."""
    return get_train_context().preemption_context.preemption_info is not None
