"""Engines on one node share one copy of the weights, whoever of them is killed at whatever moment."""

import multiprocessing
import os
import random
import threading
import time
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from srft_ray.sync import node_copy as module
from srft_ray.sync.node_copy import node_copy

TIMEOUT_S = 60
WHOLE = "0123456789"


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "SHARED_MEMORY", tmp_path)
    return tmp_path


def load(memory: Path, tell: Connection, fault: str = "", patience_s: float = TIMEOUT_S) -> None:
    """An engine that tells what it does, and waits for an answer before it goes on."""
    module.SHARED_MEMORY = memory

    def pause(*what: object) -> None:
        tell.send(what)
        tell.recv()

    def write(folder: Path) -> None:
        (folder / "weights").write_text(WHOLE[:5])
        pause("writes")
        if fault == "fails":
            raise OSError("No space left on device")
        (folder / "weights").write_text(WHOLE)

    def remove(folder: Path) -> None:
        (folder / "weights").unlink()
        pause("removes")
        os.rmdir(folder)

    if fault == "cut":
        module.shutil.rmtree = remove
    tell.send(["begins"])
    with node_copy("a", write, patience_s) as folder:
        pause("reads", (folder / "weights").stat().st_ino, (folder / "weights").read_text())


class Engine:
    """A process that calls `load` and is stopped at each thing that it tells.

    Its `fault`: it `fails` while it writes, or is `cut` while it removes.
    """

    def __init__(self, memory: Path, **options: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.told, tell = context.Pipe()
        self.process = context.Process(target=load, args=(memory, tell), kwargs=options, daemon=True)
        self.process.start()
        tell.close()
        self.expect("begins")

    def expect(self, what: str) -> tuple[object, ...]:
        assert self.told.poll(TIMEOUT_S), f"does not say that it {what}"
        first, *more = self.told.recv()
        assert first == what
        return tuple(more)

    def says_nothing(self) -> bool:
        return not self.told.poll(0.3)

    def go_on(self) -> None:
        self.told.send(None)

    def kill(self) -> None:
        self.process.kill()
        self.process.join(TIMEOUT_S)

    def finish(self) -> None:
        """Leaves, and removes the folder if it is the last."""
        self.go_on()
        self.process.join(TIMEOUT_S)
        assert self.process.exitcode == 0


@contextmanager
def engines(memory: Path, *options: dict[str, object]):
    started = [Engine(memory, **keys) for keys in options]
    try:
        yield started
    finally:
        for engine in started:
            engine.kill()


def folders(memory: Path) -> list[Path]:
    return sorted(path for path in memory.iterdir() if path.is_dir())


def test_four_engines_load_one_copy(memory: Path):
    with engines(memory, {}) as [first]:
        first.expect("writes")
        with engines(memory, {}, {}, {}) as others:
            assert all(engine.says_nothing() for engine in others)
            first.go_on()
            found = {engine.expect("reads") for engine in [first, *others]}
            assert len(found) == 1 and found.pop()[1] == WHOLE
            assert len(folders(memory)) == 1 and len(list(memory.iterdir())) == 1
            for engine in [*others, first]:
                assert folders(memory)
                engine.finish()
    assert not list(memory.iterdir())


def test_another_engine_writes_when_the_writer_is_killed(memory: Path):
    with engines(memory, {}) as [killed]:
        killed.expect("writes")
        with engines(memory, {}, {}) as waiting:
            assert all(engine.says_nothing() for engine in waiting)
            killed.kill()
            [writer] = multiprocessing.connection.wait([engine.told for engine in waiting], TIMEOUT_S)
            waiting.sort(key=lambda engine: engine.told is not writer)
            waiting[0].expect("writes")
            assert waiting[1].says_nothing()
            waiting[0].go_on()
            found = {engine.expect("reads") for engine in waiting}
            assert len(found) == 1 and found.pop()[1] == WHOLE
            for engine in waiting:
                engine.finish()
    # What the killed one left is removed by the next engine that loads anything.
    with node_copy("b", lambda folder: None, TIMEOUT_S) as folder:
        assert folders(memory) == [folder]
    assert not list(memory.iterdir())


def test_a_writer_that_hangs_is_not_waited_for_and_finds_the_others_copy(memory: Path):
    """A writer that has not ended, but writes, is waited for."""
    with engines(memory, {}) as [hanging]:
        hanging.expect("writes")
        [part] = folders(memory)
        with engines(memory, {"patience_s": 1.0}) as [other]:
            for number in range(20):
                time.sleep(0.1)
                (part / "weights").write_text(WHOLE[: number % 2])
            assert other.says_nothing()
            other.expect("writes")
            other.go_on()
            found = other.expect("reads")
            hanging.go_on()
            assert hanging.expect("reads") == found and found[1] == WHOLE
            other.finish()
            hanging.finish()
    assert not list(memory.iterdir())


def test_a_writer_that_fails_leaves_nothing_and_the_next_one_writes(memory: Path):
    with engines(memory, {"fault": "fails"}) as [failing]:
        failing.expect("writes")
        with engines(memory, {}) as [other]:
            assert other.says_nothing()
            failing.go_on()
            other.expect("writes")
            other.go_on()
            assert other.expect("reads")[1] == WHOLE
            other.finish()
            failing.process.join(TIMEOUT_S)
            assert failing.process.exitcode == 1
    assert not list(memory.iterdir())


def test_a_reader_that_is_killed_takes_nothing_from_the_others(memory: Path):
    with engines(memory, {}) as [killed]:
        killed.expect("writes")
        killed.go_on()
        inode, _ = killed.expect("reads")
        with engines(memory, {}) as [other]:
            assert other.expect("reads") == (inode, WHOLE)
            killed.kill()
            # Another version does not remove what is still read.
            with node_copy("b", lambda folder: None, TIMEOUT_S) as folder:
                assert len(folders(memory)) == 2 and folder.exists()
            assert folders(memory)
            other.finish()
    assert not list(memory.iterdir())


def test_a_whole_copy_that_a_killed_reader_left_is_used_again(memory: Path):
    with engines(memory, {}) as [killed]:
        killed.expect("writes")
        killed.go_on()
        killed.expect("reads")
        killed.kill()
    assert len(folders(memory)) == 1
    with node_copy("a", lambda folder: pytest.fail("it is there"), TIMEOUT_S) as folder:
        assert (folder / "weights").read_text() == WHOLE
    assert not list(memory.iterdir())


def test_a_copy_that_is_being_removed_is_not_used(memory: Path):
    with engines(memory, {"fault": "cut"}) as [killed]:
        killed.expect("writes")
        killed.go_on()
        killed.expect("reads")
        killed.go_on()
        killed.expect("removes")  # its file is gone
        killed.kill()
    assert len(folders(memory)) == 1
    with node_copy("a", lambda folder: (folder / "weights").write_text(WHOLE), TIMEOUT_S) as folder:
        assert (folder / "weights").read_text() == WHOLE
    assert not list(memory.iterdir())


def test_leftovers_of_an_earlier_release_are_removed(memory: Path):
    (memory / "srft_ray_weights_12345_x1y2").mkdir()
    (memory / "srft_ray_weights_12345_x1y2" / "model-00000.safetensors").touch()
    (memory / "other").mkdir()
    with node_copy("a", lambda folder: None, TIMEOUT_S):
        pass
    assert [path.name for path in memory.iterdir()] == ["other"]


def test_many_engines_that_come_and_go_find_it_whole(memory: Path):
    """Each thread is an engine: locks belong to opened files, not to processes."""
    problems: list[str] = []

    def write(folder: Path) -> None:
        for end in range(len(WHOLE)):
            (folder / "weights").write_text(WHOLE[: end + 1])

    def engine(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            try:
                with node_copy(rng.choice("ab"), write, TIMEOUT_S) as folder:
                    text = (folder / "weights").read_text()
                    problems.extend([text] if text != WHOLE else [])
            except Exception as error:
                problems.append(repr(error))

    threads = [threading.Thread(target=engine, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems and not list(memory.iterdir())
