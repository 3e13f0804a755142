"""More than a hundred hostile verifiers and responses: each gets a verdict in time and harms no other."""

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from srft_ray.data import tasks
from srft_ray.verify import Item, Verdict, VerifierPool
from srft_ray.verify.verifier import MAX_REWARD, VERDICTS
from tests.hostile import ACTS, HOSTILE_FILE, RESPONSES, WITHOUT_NAMESPACES, allowed

TIMEOUT_S = 1.0
GOOD = Verdict("match", 1.0, None)
TOKEN = "SRFT_HOSTILE"
SLEEPERS = b"61.37"


def marked() -> list[str]:
    """Command lines of living processes that the verifiers of this test are, started or detached."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
            if TOKEN.encode() in environment or SLEEPERS in command.split(b"\0"):
                found.append(f"{folder.name} {command!r}")
    return found


def all_gone(timeout_s: float = 5.0) -> list[str]:
    deadline = time.monotonic() + timeout_s
    while (left := marked()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where files are looked for: the directory of temporary files, and shared memory."""
    monkeypatch.setenv(TOKEN, "1")
    monkeypatch.setenv("MY_SECRET", "x")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "outside").mkdir()
    before = {*os.listdir("/dev/shm")}
    yield tmp_path
    assert all_gone() == []
    assert os.listdir(tmp_path / "tmp") == []
    assert os.listdir(tmp_path / "outside") == []
    assert not {name for name in {*os.listdir("/dev/shm")} - before if name.startswith(("left", "worker"))}
    assert not list(Path("/tmp").glob("left-*"))


@pytest.fixture
def port() -> Iterator[int]:
    """A server on this machine that no verifier may reach."""
    reached = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        accept = threading.Thread(target=lambda: reached.append(server.accept()), daemon=True)
        accept.start()
        yield server.getsockname()[1]
        assert not reached


def check(verdict: Verdict) -> None:
    """It can be trained on, stored and shown."""
    assert verdict.verdict in VERDICTS and abs(verdict.reward) <= MAX_REWARD
    if verdict.answer is not None:
        verdict.answer.encode()
        assert len(verdict.answer) <= 10_000 and not set(verdict.answer) & set("\0\r\x1b\x9b\u202e")


@pytest.mark.full
@pytest.mark.parametrize("namespaces", [True, False])
def test_hostile_verifiers_get_a_verdict_in_time(folder: Path, port: int, namespaces: bool) -> None:
    assert len(ACTS) > 100
    file = folder / "hostile.py"
    file.write_text(HOSTILE_FILE)
    pool = VerifierPool(
        path=f"{file}:score", timeout_s=TIMEOUT_S, num_workers=3, memory_mb=256, namespaces=namespaces
    )
    metadata = {"outside": str(folder / "outside"), "port": port}
    wrong = []
    with closing(pool):
        assert pool.verify([Item("good", "", metadata)] * 3) == [GOOD] * 3
        # A worker that dies is replaced twice, which takes its time on a busy machine.
        start = time.monotonic()
        pool.verify([Item("exit", "", metadata)])
        limit_s = 2 * TIMEOUT_S + 2 * (time.monotonic() - start)
        for act in ACTS if namespaces else WITHOUT_NAMESPACES:
            start = time.monotonic()
            verdicts = pool.verify(
                [Item(response, "", metadata) for response in ("good", act, "good", "good")]
            )
            wall_s = time.monotonic() - start
            check(verdicts[1])
            is_right = verdicts[1].verdict in allowed(act) and verdicts[1].answer != "MY_SECRET"
            if [verdicts[0], *verdicts[2:]] != [GOOD] * 3 or not is_right:
                wrong.append((act, verdicts))
            # Without namespaces it may end the supervisor, which takes time to start.
            if wall_s > limit_s and not (act == "kill supervisor" and not namespaces):
                wrong.append((act, wall_s))
            if left := sleepers_left():
                wrong.append((act, left))
        assert pool.verify([Item("good", "", metadata)] * 9) == [GOOD] * 9
    assert wrong == []


def sleepers_left() -> list[str]:
    """What the item before should have taken with it."""
    deadline = time.monotonic() + 0.2
    while (left := [line for line in marked() if "61.37" in line]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


@pytest.mark.full
@pytest.mark.parametrize("name", ["math", "tasks"])
def test_hostile_responses_get_a_verdict_in_time(folder: Path, name: str) -> None:
    row = next(tasks.generate("sums", "train", 1, 0))
    good = (
        Item("#### 7", "7", {})
        if name == "math"
        else Item(row["demonstration"], row["answer"], row["metadata"])
    )
    with closing(VerifierPool(name, timeout_s=TIMEOUT_S, num_workers=2)) as pool:
        pool.verify([good, good])
        start = time.monotonic()
        items = [Item(response, good.reference, good.metadata) for response in RESPONSES]
        verdicts = pool.verify([item for hostile in items for item in (good, hostile)])
        assert time.monotonic() - start < 2 * TIMEOUT_S * len(items)
        assert {verdict.verdict for verdict in verdicts[::2]} == {"match"}
        for verdict in verdicts:
            check(verdict)


def test_an_item_alone_in_its_worker_cannot_change_the_next(folder: Path) -> None:
    def corrupts(response: str, reference: str) -> float:
        import builtins

        import srft_ray.verify.worker as worker

        if response == "corrupt":
            builtins.float = lambda value: 9.0
            worker.as_verdict = lambda result: Verdict("match", 9.0, None)
        return response == reference

    pool = VerifierPool(function=corrupts, items_per_worker=1, timeout_s=TIMEOUT_S)
    with closing(pool):
        verdicts = pool.verify([Item(text, "b", {}) for text in ("corrupt", "a", "corrupt", "b")])
    assert [verdicts[1].reward, verdicts[3].reward] == [0.0, 1.0]
