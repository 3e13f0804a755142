"""When Ray Data's loop looks for results; the process of the loop has what is set."""

import inspect

import pytest
import ray
from ray.data import DataContext
from ray.data._internal.execution import streaming_executor_state

from srft_ray.data import loop


@pytest.fixture
def context(monkeypatch):
    monkeypatch.setattr(streaming_executor_state, "ray", ray)
    present = DataContext()
    monkeypatch.setattr(DataContext, "get_current", lambda: present)
    return present


@pytest.fixture
def waits(monkeypatch):
    """What Ray was asked, and the tasks that have results: those in `ready`."""
    asked, ready = [], []

    def wait(tasks, num_returns, timeout, fetch_local):
        asked.append((num_returns, timeout))
        found = [task for task in tasks if task in ready][:num_returns]
        return found, [task for task in tasks if task not in found]

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(loop.time, "sleep", lambda seconds: asked.append(seconds))
    return asked, ready


def test_ray_waits_as_it_is_replaced():
    source = inspect.getsource(streaming_executor_state.process_completed_tasks)
    assert "ray.wait(" in source and "num_returns=len(active_tasks)" in source
    assert streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S == 0.1


@pytest.mark.parametrize(("workers", "at_once"), [(1, True), (1000, False)])
def test_a_stream_of_few_workers_looks_at_once(context, workers, at_once):
    loop.look_at_once(context, workers, True)
    loop.look_at_once(context, workers, True)
    (own,) = context.custom_execution_callback_classes
    own().before_execution_starts(None)
    assert (streaming_executor_state.ray is not ray) == at_once
    assert streaming_executor_state.ray.ObjectRef is ray.ObjectRef


@pytest.mark.parametrize(("waited_for", "interval_s"), [(True, 0.02), (False, 0.1)])
def test_it_looks_often_where_learners_wait(context, waits, waited_for, interval_s):
    loop.look_at_once(context, 1, waited_for)
    loop.LooksAtOnce().before_execution_starts(None)
    streaming_executor_state.ray.wait(["a"], num_returns=1, timeout=0.1, fetch_local=False)
    assert waits[0] == [(1, interval_s)]


def test_another_stream_of_the_process_is_left_alone(context):
    loop.look_at_once(context, 1, True)
    loop.LooksAtOnce().before_execution_starts(None)
    context.set_config(loop.KEY, None)
    loop.LooksAtOnce().before_execution_starts(None)
    assert streaming_executor_state.ray is ray


def test_it_waits_for_the_first_result_and_takes_all(waits):
    asked, ready = waits
    own = loop._FirstResult(0.1)
    assert own.wait(["a", "b", "c"], num_returns=3, timeout=0.1, fetch_local=False) == ([], ["a", "b", "c"])
    ready += ["c", "a"]
    assert own.wait(["a", "b", "c"], num_returns=3, timeout=0.1, fetch_local=False) == (["a", "c"], ["b"])
    assert asked == [(1, 0.1), (1, 0.1), (3, 0)]


def test_results_that_are_left_do_not_keep_it_busy(waits):
    asked, ready = waits
    own = loop._FirstResult(0.1)
    ready.append("a")
    for _ in range(loop.LEFT):
        own.wait(["a"], num_returns=1, timeout=0.1, fetch_local=False)
    assert loop.PAUSE_S not in asked  # a task has several results, one after another
    own.wait(["a"], num_returns=1, timeout=0.1, fetch_local=False)
    assert asked[-1] == loop.PAUSE_S
    own.wait(["b"], num_returns=1, timeout=0.1, fetch_local=False)
    ready.append("b")
    own.wait(["b"], num_returns=1, timeout=0.1, fetch_local=False)
    assert asked[-1] == (1, 0.1)
