"""Nothing in a response, and no death of a process, can hang, crash or outlive the VerifierPool."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from srft_ray.config.schema import VerifierSection
from srft_ray.rollout.judges import make_verifier_pool
from srft_ray.verify import Verdict, VerifierPool
from srft_ray.verify.pool import VerifierFailed
from tests.judges import EXPECTED, item


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def wait_dead(pids: list[int], timeout_s: float) -> list[int]:
    end = time.monotonic() + timeout_s
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def children(pid: int) -> list[int]:
    below = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return below + [grandchild for child in below for grandchild in children(child)]


def running(argument: bytes) -> list[int]:
    """Processes with this command line argument."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if argument in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
    return found


@pytest.mark.parametrize("namespaces", [True, False])
def test_a_timeout_ends_what_the_verifier_started(
    user: Callable[..., VerifierPool], namespaces: bool
) -> None:
    pool, verdicts = user(namespaces=namespaces), []
    thread = threading.Thread(target=lambda: verdicts.extend(pool.verify([item("sleeper")])))
    thread.start()
    while not (sleepers := running(b"60.718")):
        assert thread.is_alive()
    thread.join()
    assert verdicts == [Verdict("timeout", 0.0, None)]
    assert wait_dead(sleepers, 1.0) == []


def test_worn_out_worker_is_replaced_unnoticed(user: Callable[..., VerifierPool]) -> None:
    verdicts = user().verify([item("who")] * 1001)
    assert len({verdict.answer for verdict in verdicts}) == 2 and verdicts[0].answer == verdicts[999].answer


def test_verification_goes_on_after_a_worker_died_idle_and_after_close(
    user: Callable[..., VerifierPool],
) -> None:
    pool = user()
    pool.verify([item("who")])
    (pid,) = children(pool._process.pid)
    os.kill(pid, signal.SIGKILL)
    assert wait_dead([pid], 1.0) == []
    assert pool.verify([item("good")]) == [EXPECTED["good"]]
    pool.close()
    assert pool.verify([item("good")]) == [EXPECTED["good"]]


@pytest.mark.parametrize("response", ["good", "hang"])
def test_no_process_outlives_its_killed_owner(user_file: Path, response: str) -> None:
    # the forked sleeper holds the owner's end of the connection open
    program = (
        f"import os, time, threading\nfrom srft_ray.verify import Item, VerifierPool\n"
        f"pool = VerifierPool('', {str(user_file) + ':score'!r}, timeout_s=60, num_workers=2)\n"
        f"pool.verify([Item('good', '', {{}})])\n"
        f"if os.fork() == 0:\n    time.sleep(30)\n    os._exit(0)\n"
        f"threading.Thread(target=pool.verify, args=([Item({response!r}, '', {{}})],)).start()\n"
        f"print('ready', flush=True)\ntime.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert owner.stdout.readline() == "ready\n"
    family = children(owner.pid)
    supervisor_and_workers = [
        pid for pid in family if b"supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(supervisor_and_workers) == 3
    owner.kill()
    owner.wait()
    assert wait_dead(supervisor_and_workers, 4.0) == []
    for pid in set(family) - set(supervisor_and_workers):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("number", "who"),
    [(signal.SIGKILL, "worker"), (signal.SIGKILL, "supervisor"), (signal.SIGSTOP, "supervisor")],
)
def test_processes_that_die_or_hang_under_a_question_are_asked_again(
    user: Callable[..., VerifierPool], monkeypatch: pytest.MonkeyPatch, number: int, who: str
) -> None:
    pool = user(timeout_s=0.5)
    pool.verify([item("who")])
    (worker,) = children(pool._process.pid)
    monkeypatch.setattr("srft_ray.verify.pool.START_S", 0.2)
    victim = worker if who == "worker" else pool._process.pid
    threading.Timer(0.1, lambda: os.kill(victim, number)).start()
    assert pool.verify([item("slow")]) == [EXPECTED["good"]]
    assert wait_dead([victim], 2.0) == []


def test_processes_that_always_die_are_a_failure(user: Callable[..., VerifierPool]) -> None:
    pool = user()
    start = pool._start

    def start_and_die() -> None:
        start()
        pool._process.kill()

    pool._stop()
    pool._start = start_and_die
    with pytest.raises(VerifierFailed, match="died or hung 3 times in a row"):
        pool.verify([item("good")])


ASKS_A_SERVER = """
import os
import socket

def judge(response, reference):
    with socket.create_connection(("127.0.0.1", int(reference)), timeout=1) as server:
        return server.recv(10) == b"correct" and os.environ.get("JUDGE_KEY") == "key"
"""


@pytest.mark.parametrize("allowed", [True, False])
def test_a_verifier_that_asks_a_server_needs_two_keys(tmp_path, monkeypatch, allowed):
    monkeypatch.setenv("JUDGE_KEY", "key")
    (tmp_path / "judge.py").write_text(ASKS_A_SERVER)
    section = VerifierSection(path=f"{tmp_path / 'judge.py'}:judge")
    if allowed:
        section.network = True
        section.environment = ["JUDGE_KEY"]
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        contextlib.closing(make_verifier_pool(section)) as pool,
    ):
        server.settimeout(0.1)
        thread = threading.Thread(target=answer, args=(server, 3.0), daemon=True)
        thread.start()
        [verdict] = pool.verify([item("", str(server.getsockname()[1]))])
        thread.join()
    assert verdict.reward == float(allowed)


def answer(server, seconds):
    """Says `correct` to the first who asks."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            client, _ = server.accept()
            client.sendall(b"correct")
            client.close()
            return
