"""How often Ray Data's loop looks for results; the process of the loop has the interval."""

import inspect

import pytest
from ray.data import DataContext
from ray.data._internal.execution import streaming_executor_state

from srft_ray.data import loop

NAME = "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S"


@pytest.fixture
def context(monkeypatch):
    monkeypatch.setattr(streaming_executor_state, NAME, loop.RAYS_INTERVAL_S)
    present = DataContext()
    monkeypatch.setattr(DataContext, "get_current", lambda: present)
    return present


def test_ray_has_what_is_set():
    assert f"timeout={NAME}" in inspect.getsource(streaming_executor_state.process_completed_tasks)
    assert loop.RAYS_INTERVAL_S == 0.1


@pytest.mark.parametrize(("workers", "interval"), [(1, loop.INTERVAL_S), (1000, loop.RAYS_INTERVAL_S)])
def test_a_stream_looks_often_for_few_workers(context, workers, interval):
    loop.look_often(context, workers)
    loop.look_often(context, workers)
    (own,) = context.custom_execution_callback_classes
    own().before_execution_starts(None)
    assert getattr(streaming_executor_state, NAME) == interval


def test_another_stream_of_the_process_is_left_alone(context):
    loop.LooksOften().before_execution_starts(None)
    assert getattr(streaming_executor_state, NAME) == loop.RAYS_INTERVAL_S
