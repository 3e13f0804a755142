"""How learners hear that they are to leave."""

import asyncio

import pytest

from srft_ray.sync.coordinator import Coordinator
from srft_ray.train import job
from srft_ray.train.job import LEAVE_WAIT_S, LeaveQuestion


class Coordinators:
    """Counts questions; `answers` has those that are answered, by their number."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.answers: dict[int, str] = {}
        self.leave_requested = self

    def remote(self, wait_s: float = 0.0) -> int:
        self.waits.append(wait_s)
        return len(self.waits)


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> Coordinators:
    made = Coordinators()
    monkeypatch.setattr(
        job.ray, "wait", lambda asked, timeout: (asked if asked[0] in made.answers else [], [])
    )
    monkeypatch.setattr(job.ray, "get", lambda number: made.answers.get(number, ""))
    return made


def test_a_waiting_learner_has_one_question_on_its_way(coordinator: Coordinators):
    question = LeaveQuestion(coordinator, lambda: False)
    assert not any(question.look() for _ in range(100))
    assert coordinator.waits == [LEAVE_WAIT_S]
    coordinator.answers[1] = ""  # nobody asked it to leave for so long
    assert not question.look() and not question.look()
    assert coordinator.waits == [LEAVE_WAIT_S] * 2
    coordinator.answers[2] = "SIGTERM"
    assert question.look()


def test_a_vote_asks_for_the_answer_of_now(coordinator: Coordinators):
    question = LeaveQuestion(coordinator, lambda: False)
    assert not question.ask()
    coordinator.answers[2] = "SIGTERM"
    assert question.ask() and coordinator.waits == [0.0, 0.0]


def test_the_loss_of_a_machine_is_noticed_at_once(coordinator: Coordinators):
    question = LeaveQuestion(coordinator, lambda: True)
    assert question.look() and question.ask() and coordinator.waits == []


@pytest.mark.parametrize("ask", ["request_stop", "request_leave"])
def test_the_coordinator_answers_when_learners_are_to_leave(ask: str):
    async def story():
        coordinator = Coordinator(0)
        assert await coordinator.leave_requested(0.01) == ""
        waiting = asyncio.create_task(coordinator.leave_requested(60.0))
        await asyncio.sleep(0)
        words = ("SIGTERM",) if ask == "request_stop" else ("SIGTERM", 0.01)
        await getattr(coordinator, ask)(*words)
        assert await asyncio.wait_for(waiting, 1.0) == "SIGTERM"

    asyncio.run(story())
