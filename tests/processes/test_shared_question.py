"""Processes that ask the same ask once, whoever of them is killed or fails."""

import errno
import multiprocessing
import threading
import time
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from srft_ray.sync import node_copy, shared_question
from srft_ray.sync.shared_question import ask_together

TIMEOUT_S = 60


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(node_copy, "SHARED_MEMORY", tmp_path)
    return tmp_path


def question(memory: Path, tell: Connection) -> None:
    """Tells that it asks, and takes what it is told for the answer; tells the answer that it got."""
    node_copy.SHARED_MEMORY = memory

    def ask() -> str:
        tell.send("asks")
        answer = tell.recv()
        if not answer:
            raise RuntimeError("nobody answers")
        return answer

    tell.send("begins")
    try:
        tell.send(f"got {ask_together('weather', ask)}")
    except RuntimeError as error:
        tell.send(str(error))


class Asker:
    def __init__(self, memory: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.told, tell = context.Pipe()
        self.process = context.Process(target=question, args=(memory, tell), daemon=True)
        self.process.start()
        tell.close()
        self.expect("begins")

    def expect(self, what: str) -> None:
        assert self.told.poll(TIMEOUT_S) and self.told.recv() == what

    def asks(self) -> bool:
        """Whether it asks by itself; one that waits for another one says nothing."""
        return self.told.poll(0.5) and self.told.recv() == "asks"

    def answer(self, text: str) -> None:
        self.told.send(text)


@contextmanager
def askers(memory: Path, count: int):
    """The first one asks, and the others have come after it."""
    first = Asker(memory)
    first.expect("asks")
    everyone = [first, *(Asker(memory) for _ in range(count - 1))]
    try:
        yield everyone
    finally:
        for asker in everyone:
            asker.process.kill()
            asker.process.join()


def test_one_asks_for_all_and_later_ones_ask_anew(memory: Path):
    with askers(memory, 4) as everyone:
        first, *others = everyone
        assert not any(other.asks() for other in others)
        first.answer("rain")
        for asker in everyone:
            asker.expect("got rain")
        assert not list(memory.iterdir())
        with askers(memory, 1) as [later]:
            later.answer("sun")
            later.expect("got sun")


@pytest.mark.parametrize("end", ["killed", "fails"])
def test_another_one_asks_when_the_first_ends_without_an_answer(memory: Path, end: str):
    with askers(memory, 3) as [first, *others]:
        assert not any(other.asks() for other in others)
        if end == "killed":
            first.process.kill()
        else:
            first.answer("")
            first.expect("nobody answers")
        asking = [other for other in others if other.asks()]
        assert len(asking) == 1
        asking[0].answer("snow")
        for other in others:
            other.expect("got snow")
        assert not list(memory.iterdir())


def test_what_one_left_that_was_killed_is_no_part_of_an_answer(memory: Path):
    with askers(memory, 2) as [first, other]:
        assert not other.asks()
        [file] = memory.iterdir()
        file.write_text("a longer answer")
        first.answer("rain")
        for asker in (first, other):
            asker.expect("got rain")


@pytest.mark.parametrize("call", ["open", "write"])
def test_without_room_each_asks_for_itself(memory: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shared_question.os, call, fails)
    assert [ask_together("weather", lambda: "rain") for _ in range(2)] == ["rain", "rain"]
    monkeypatch.undo()
    assert not list(memory.iterdir())


def test_threads_ask_together_too_and_other_names_apart(memory: Path):
    asked: list[str] = []
    go_on = threading.Event()

    def ask(name: str) -> str:
        asked.append(name)
        assert go_on.wait(TIMEOUT_S)
        return f"of {name}"

    found: list[str] = []

    def run(name: str) -> None:
        found.append(ask_together(name, lambda: ask(name)))

    threads = [threading.Thread(target=run, args=(name,)) for name in ["a"] * 5 + ["b"] * 3]
    for thread in threads:
        thread.start()
    time.sleep(0.5)  # in which all have come
    assert sorted(asked) == ["a", "b"]
    go_on.set()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["of a"] * 5 + ["of b"] * 3 and sorted(asked) == ["a", "b"]
    assert not list(memory.iterdir())
