"""How often Ray Data's loop looks for results: an extension of Ray Data that needs one of its internals."""

from typing import Any

from ray.data import DataContext
from ray.data._internal.execution import streaming_executor_state
from ray.data._internal.execution.execution_callback import ExecutionCallback

INTERVAL_S = 0.02  # for a few workers
RAYS_INTERVAL_S = streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S
MANY = 100  # workers, from which on the interval is Ray's: each look then takes the loop longer
KEY = "srft_ray.interval_s"


class LooksOften(ExecutionCallback):
    """Runs in the process of the loop, before it begins.

    The loop waits until all running tasks have results, or for an interval. Engines end at different moments,
    and one that has ended already waits with its next block for weights, so that the loop would see results a
    whole interval late.
    """

    def before_execution_starts(self, executor: Any) -> None:
        interval_s = DataContext.get_current().get_config(KEY, RAYS_INTERVAL_S)
        streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = interval_s


def look_often(context: DataContext, workers: int) -> None:
    """Lets a stream with so many workers, which is then made with the context, look for results soon."""
    context.set_config(KEY, INTERVAL_S if workers < MANY else RAYS_INTERVAL_S)
    if LooksOften not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(LooksOften)
