"""Rollouts are judged while others of their block are sampled; nothing recorded depends on when they end."""

import contextlib
import threading
from types import SimpleNamespace

import pytest

from algorithms import Group
from srft_ray.config.rollout import RolloutSection
from srft_ray.rollout.base_evaluation import Origin, base_evaluations
from srft_ray.rollout.generation import Generation
from srft_ray.rollout.judges import Judge
from srft_ray.rollout.loaded_version import EngineWeights, LoadedVersion
from srft_ray.rollout.step_loop import StepLoop
from srft_ray.rollout.worker import RolloutWorker
from srft_ray.sync.admission import Admission
from srft_ray.sync.versions import PolicyWeights
from srft_ray.verify import Item, Verdict, VerifierFailed
from tests.unit.test_step_loop import DEADLINE_S, FakeEngine

WEIGHTS = EngineWeights(PolicyWeights(0, "model"))


class Pool:
    """A VerifierPool whose verdict names the response; it notes what it was given in each call."""

    def __init__(self):
        self.calls = []
        self.asked = threading.Event()
        self.proceed = threading.Event()
        self.proceed.set()

    def verify(self, items):
        self.calls.append([item.response for item in items])
        self.asked.set()
        assert self.proceed.wait(DEADLINE_S)
        if any(item.response == "fails" for item in items):
            raise VerifierFailed("the verifier processes died")
        return [Verdict("match", float(len(item.response)), item.response) for item in items]


class Engine:
    """Samples a prompt [n, steps] in so many steps; the text is n and the seed."""

    def __init__(self, stepped):
        self.loop = StepLoop(stepped)

    def stream(self, prompts, seeds, sampling, used):
        requests = [("breaks" if number < 0 else number, steps) for number, steps in prompts]
        for index, output in self.loop.stream(requests):
            yield index, Generation([output.prompt], [0.0], f"{output.prompt}/{seeds[index]}", "stop")


class Worker(RolloutWorker):
    """The actor without Ray and vLLM. Errors that end its process are kept in `ended`."""

    def __init__(self, stepped, pool):
        settings = {"seed": 0, "rollout": RolloutSection()}
        self.settings = SimpleNamespace(**settings)
        self.reader = SimpleNamespace(stage=lambda step: SimpleNamespace(algorithm=Plain, start=0))
        self.judges = SimpleNamespace(of=lambda dataset: Judge(pool))
        self.loaded = LoadedVersion(WEIGHTS, lambda offered: WEIGHTS, DEADLINE_S)
        self.engine = Engine(stepped)
        self.environment = None
        self.ended = []
        process = SimpleNamespace(engine="engine")
        self.life = SimpleNamespace(ending_on_error=self._ending_on_error, process=process)
        self._probe = ()
        [self.base] = base_evaluations([Origin("model", 0)])

    @contextlib.contextmanager
    def _ending_on_error(self):
        try:
            yield
        except Exception as error:
            self.ended.append(error)
            raise

    def _wait_for_admission(self, group):
        return Admission(True, PolicyWeights(0), 1, 0)


class Plain:
    shares_prefix = False

    @staticmethod
    def prefix(group, sample, step, rng):
        return 0


class LateEngine(FakeEngine):
    """Before the step that would end the last sequence it waits until a response is being judged."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool
        self.judged_in_time = None

    def step(self):
        if len(self.left) == 1 and self.judged_in_time is None:
            self.judged_in_time = self.pool.asked.wait(DEADLINE_S)
        return super().step()


def groups(*steps):
    """Groups of two rollouts; those of group n end after steps[n] steps."""
    return [
        Group(0, n, "", [n, count], "", num_rollouts=2, max_new_tokens=8) for n, count in enumerate(steps)
    ]


def recorded(found):
    return [(g.group_id, c.sample, c.text, c.verdict, c.reward, c.answer) for g in found for c in g.rollouts]


def test_a_response_is_judged_before_the_last_one_ends():
    pool = Pool()
    engine = LateEngine(pool)
    found = groups(1, 3)
    found[1].num_rollouts = 1
    Worker(engine, pool)._roll_out(found)
    assert engine.judged_in_time
    assert {rollout.verdict for group in found for rollout in group.rollouts} == {"match"}


def test_the_order_does_not_depend_on_which_ends_first():
    results = []
    for steps in ((1, 2, 3), (3, 2, 1), (2, 3, 1)):
        found = groups(*steps)
        Worker(FakeEngine(), Pool())._roll_out(found)
        results.append(recorded(found))
    assert results[0] == results[1] == results[2]
    assert [row[:2] for row in results[0]] == [(n, sample) for n in range(3) for sample in range(2)]
    assert all(answer == text and reward == len(text) for _, _, text, _, reward, answer in results[0])


def test_weights_may_change_while_the_last_responses_are_judged():
    pool = Pool()
    pool.proceed.clear()
    worker = Worker(FakeEngine(), pool)
    found = groups(1, 2)
    block = threading.Thread(target=worker._roll_out, args=(found,))
    block.start()
    assert pool.asked.wait(DEADLINE_S)
    deadline = threading.Event()
    while worker.loaded.in_flight:
        assert not deadline.wait(0.01)
    assert {rollout.verdict for group in found for rollout in group.rollouts} <= {"unjudged"}
    pool.proceed.set()
    block.join(DEADLINE_S)
    assert all(g.asked_at <= g.started_at <= g.finished_at <= g.judged_at for g in found)
    assert len({(g.started_at, g.finished_at, g.judged_at) for g in found}) == 1


def test_an_engine_that_fails_in_the_middle_ends_its_process_and_the_block_is_repeated_whole():
    pool = Pool()
    broken = groups(1, 3)
    broken[1].prompt_ids = [-1, 3]
    worker = Worker(FakeEngine(), pool)
    with pytest.raises(RuntimeError, match="out of memory"):
        worker._roll_out(broken)
    assert [str(error) for error in worker.ended] == ["CUDA out of memory"]
    repeated, undisturbed = groups(1, 3), groups(1, 3)
    Worker(FakeEngine(), pool)._roll_out(repeated)
    Worker(FakeEngine(), Pool())._roll_out(undisturbed)
    assert recorded(repeated) == recorded(undisturbed)


def test_a_judge_that_fails_ends_the_process():
    pool = Pool()
    worker = Worker(FakeEngine(), pool)
    worker._text = lambda request, generation: "fails"
    with pytest.raises(VerifierFailed):
        worker._roll_out(groups(1, 2))
    assert [type(error) for error in worker.ended] == [VerifierFailed]


def test_a_judge_takes_all_that_came_while_it_was_busy():
    pool = Pool()
    pool.proceed.clear()
    judge = Judge(pool)
    first = judge.submit(Item("0", "", {}))
    assert pool.asked.wait(DEADLINE_S)
    others = [judge.submit(Item(str(n), "", {})) for n in range(1, 6)]
    pool.proceed.set()
    assert [verdict.result(DEADLINE_S).answer for verdict in (first, *others)] == [
        "0",
        "1",
        "2",
        "3",
        "4",
        "5",
    ]
    assert pool.calls == [["0"], ["1", "2", "3", "4", "5"]]


def test_a_judge_goes_on_after_a_failure():
    judge = Judge(Pool())
    with pytest.raises(VerifierFailed):
        judge.submit(Item("fails", "", {})).result(DEADLINE_S)
    assert judge.submit(Item("good", "", {})).result(DEADLINE_S).answer == "good"
