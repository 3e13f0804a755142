"""When Ray Data's loop looks for results: an extension of Ray Data that needs one of its internals."""

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.data import DataContext
from ray.data._internal.execution import streaming_executor_state
from ray.data._internal.execution.execution_callback import ExecutionCallback

MANY = 100  # workers, from which on Ray's own way takes less: each look then takes the loop longer
KEY = "srft_ray.interval_s"
RAYS_INTERVAL_S = streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S
INTERVAL_S = 0.02  # where learners wait for what the loop does when it has seen a result
PAUSE_S = 0.02  # before results are looked for again, where the loop left those that there were
LEFT = 3  # times that the same tasks are found with results, after which they were left


class _FirstResult:
    """Ray for the loop: its `wait` returns as soon as one task has a result, with all that have one, and in
    any case after an interval."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._found: set[Any] = set()
        self._times = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(ray, name)

    def wait(
        self, tasks: Sequence[Any], num_returns: int, timeout: float, **options: Any
    ) -> tuple[list[Any], list[Any]]:
        ready, others = ray.wait(tasks, num_returns=1, timeout=self._interval_s, **options)
        if ready and num_returns > 1:
            ready, others = ray.wait(tasks, num_returns=num_returns, timeout=0, **options)
        found = set(ready)
        self._times = self._times + 1 if found and found == self._found else 0
        self._found = found
        # A loop whose output waits for its consumer leaves results, and would find them without end.
        if self._times >= LEFT:
            time.sleep(PAUSE_S)
        return ready, others


class LooksAtOnce(ExecutionCallback):
    """Runs in the process of the loop, before it begins.

    Ray's loop waits until all running tasks have results, or for 0.1 s. Engines end at different moments, and
    one that has ended already waits with its next block for weights, so that the loop would see results up to
    0.1 s late.
    """

    def before_execution_starts(self, executor: Any) -> None:
        interval_s = DataContext.get_current().get_config(KEY, None)
        streaming_executor_state.ray = _FirstResult(interval_s) if interval_s else ray


def look_at_once(context: DataContext, workers: int, is_waited_for: bool) -> None:
    """Lets a stream with so many workers, which is then made with the context, see results at once.

    `is_waited_for`: whether learners wait while the workers work. The loop then has a core to itself, and
    takes 8 % of it to look at the rest of its work more often than Ray's does.
    """
    interval_s = INTERVAL_S if is_waited_for else RAYS_INTERVAL_S
    context.set_config(KEY, interval_s if workers < MANY else None)
    if LooksAtOnce not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(LooksAtOnce)
