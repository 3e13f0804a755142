"""The engine's loop: who is told what when a request is refused, when the engine breaks, and afterwards."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from srft_ray.rollout.step_loop import StepLoop

DEADLINE_S = 10.0


class Refused(Exception):
    """As vLLM's VLLMValidationError: neither a ValueError nor a TypeError."""


class FakeEngine:
    """Finishes a sequence after as many steps as its parameters say."""

    def __init__(self):
        self.left = {}
        self.most = 0
        self.proceed = threading.Event()
        self.proceed.set()

    def add_request(self, request_id, prompt, params):
        if prompt == "bad":
            raise Refused("Token id 999 is out of vocabulary")
        self.left[request_id] = (prompt, params)

    def step(self):
        self.proceed.wait(DEADLINE_S)
        self.most = max(self.most, len(self.left))
        outputs = []
        for request_id, (prompt, steps) in list(self.left.items()):
            if prompt == "breaks":
                raise RuntimeError("CUDA out of memory")
            self.left[request_id] = (prompt, steps - 1)
            outputs.append(SimpleNamespace(request_id=request_id, finished=steps == 1, prompt=prompt))
        self.left = {request_id: rest for request_id, rest in self.left.items() if rest[1] > 0}
        return outputs


class CountedEngine(FakeEngine):
    """Does as many steps as it is allowed."""

    def __init__(self):
        super().__init__()
        self.allowed = threading.Semaphore(0)

    def step(self):
        assert self.allowed.acquire(timeout=DEADLINE_S)
        return super().step()


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def callers():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_outputs_come_in_the_order_of_the_requests(engine):
    loop = StepLoop(engine)
    outputs = loop.sample([("a", 3), ("b", 1), ("c", 2)])
    assert [output.prompt for output in outputs] == ["a", "b", "c"]
    assert loop.steps == 3
    loop.close()


def test_a_stream_gives_each_output_when_it_ends(engine):
    loop = StepLoop(engine)
    outputs = loop.stream([("a", 3), ("b", 1), ("c", 2), ("d", 1)])
    assert [(number, output.prompt) for number, output in outputs] == [(1, "b"), (3, "d"), (2, "c"), (0, "a")]
    loop.close()


def test_a_stream_gives_an_output_while_others_run():
    engine = CountedEngine()
    loop = StepLoop(engine)
    outputs = loop.stream([("a", 2), ("b", 1)])
    engine.allowed.release()
    assert next(outputs)[0] == 1
    # The other one cannot have ended: it needs a second step.
    engine.allowed.release()
    assert next(outputs)[0] == 0
    loop.close()


def test_a_stream_says_at_its_end_what_was_refused(engine):
    loop = StepLoop(engine)
    seen = []
    with pytest.raises(Refused, match="out of vocabulary"):
        for number, _ in loop.stream([("a", 2), ("bad", 1), ("b", 1)]):
            seen.append(number)
    assert seen == [2, 0]
    loop.close()


def test_callers_share_the_steps(engine, callers):
    loop = StepLoop(engine)
    engine.proceed.clear()
    results = [callers.submit(loop.sample, [(str(n), 2)]) for n in range(4)]
    # The first step may start before the other callers have come; the second has all of them.
    engine.proceed.set()
    assert [result.result(DEADLINE_S)[0].prompt for result in results] == ["0", "1", "2", "3"]
    loop.close()


def test_a_refused_request_fails_its_caller_alone(engine, callers):
    """Its other sequences are finished before it hears of it, so that weights may be loaded afterwards."""
    loop = StepLoop(engine)
    good = callers.submit(loop.sample, [("good", 5)])
    bad = callers.submit(loop.sample, [("a", 3), ("bad", 1), ("b", 2)])
    with pytest.raises(Refused, match="out of vocabulary"):
        bad.result(DEADLINE_S)
    assert not [prompt for prompt, _ in engine.left.values() if prompt in ("a", "b")]
    assert good.result(DEADLINE_S)[0].prompt == "good"
    assert loop.sample([("later", 1)])[0].prompt == "later"
    loop.close()


def test_a_broken_engine_tells_all_who_wait_and_all_who_come(engine, callers):
    loop = StepLoop(engine)
    engine.proceed.clear()
    waiting = [callers.submit(loop.sample, [(prompt, 2)]) for prompt in ("a", "breaks", "b")]
    waiting.append(callers.submit(loop.run, lambda: None))
    engine.proceed.set()
    for caller in waiting[:3]:
        with pytest.raises(RuntimeError, match="out of memory"):
            caller.result(DEADLINE_S)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            callers.submit(loop.sample, [("later", 1)]).result(DEADLINE_S)
        with pytest.raises(RuntimeError, match="out of memory"):
            callers.submit(loop.run, lambda: None).result(DEADLINE_S)


def test_commands_queued_before_the_end_hear_of_it(engine, callers):
    loop = StepLoop(engine)
    engine.proceed.clear()
    first = callers.submit(loop.sample, [("breaks", 1)])
    while not engine.left:
        pass
    # The loop is inside its step now: what comes is queued behind the failure.
    behind = [callers.submit(loop.sample, [(str(n), 1)]) for n in range(3)]
    while loop._commands.qsize() < 3:
        pass
    engine.proceed.set()
    for caller in (first, *behind):
        with pytest.raises(RuntimeError, match="out of memory"):
            caller.result(DEADLINE_S)


def test_an_action_runs_in_the_loops_thread_and_its_error_is_its_callers(engine):
    loop = StepLoop(engine)
    names = []
    loop.run(lambda: names.append(threading.current_thread().name))
    assert names == ["vllm-step-loop"]
    with pytest.raises(ZeroDivisionError):
        loop.run(lambda: 1 / 0)
    assert loop.sample([("a", 1)])[0].prompt == "a"
    loop.close()


def test_an_action_before_requests_comes_without_a_step_between_and_its_error_is_its_callers(engine):
    loop = StepLoop(engine)
    seen = []
    [output] = loop.sample([("a", 2)], lambda: seen.append((loop.steps, dict(engine.left))))
    assert output.prompt == "a" and seen == [(0, {})] and loop.steps == 2
    with pytest.raises(ZeroDivisionError):
        loop.sample([("b", 1)], lambda: 1 / 0)
    assert not engine.left and loop.sample([("c", 1)])[0].prompt == "c"
    loop.close()


def test_a_closed_engine_leaves_no_caller(engine, callers):
    loop = StepLoop(engine)
    engine.proceed.clear()
    waiting = callers.submit(loop.sample, [("a", 100)])
    while not engine.left:
        pass
    engine.proceed.set()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        waiting.result(DEADLINE_S)
    with pytest.raises(RuntimeError, match="closed"):
        loop.sample([("b", 1)])
