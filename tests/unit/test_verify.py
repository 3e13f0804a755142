"""Verifiers give the right verdicts, and nothing in a response can hang, crash or outlive the judge."""
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from srft_ray.data import tasks
from srft_ray.errors import UserError
from srft_ray.verify import Item, Judge, Verdict, resolve
from srft_ray.verify.judge import VerifierFailed

DATA = Path(__file__).parents[2] / "../shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data folder is not there")
GOLDEN = [  # response, reference, verdict, extracted answer
    (r"\boxed{\frac{1}{2}}", "0.5", "match", r"\frac{1}{2}"),
    (r"first \boxed{7}, then \boxed{x^{2}+1}", "1 + x^2", "match", "x^{2}+1"),
    (r"\boxed{1} and cut off: \boxed{\frac{2", "1", "match", "1"),
    (r"\boxed{\{1, 2\}} } \boxed{ 5 } {", "5", "match", "5"),
    (r"#### 3 but \boxed{4}", "4", "match", "4"),
    ("48/2 = 24\n#### 24\n#### 72\nbye 5", "72", "match", "72"),
    ("#### $1,000", "1000", "match", "$1,000"),
    (r"\boxed{1000}", "1,000", "match", "1000"),
    (r"\boxed{033}", r"\boxed{33}", "match", "033"),
    (r"\boxed{(3, \pi/2)}", r"\left( 3, \frac{\pi}{2} \right)", "match", r"(3, \pi/2)"),
    (r"\boxed{4.46 \times 10^{19}}", "4.46e19", "match", r"4.46 \times 10^{19}"),
    (r"\boxed{1.24 \times 10^{-7}}", "1.24e-8", "mismatch", r"1.24 \times 10^{-7}"),
    (r"\boxed{73}", "72", "mismatch", "73"),
    (r"\boxed{\frac{1}{3}}", "0.5", "mismatch", r"\frac{1}{3}"),
    ("The answer is 72.", "72", "match", "72"),
    ("I do not know", "72", "no_answer", None),
    (r"\boxed{}", "72", "no_answer", None),
    (r"\boxed{\text{(C)}}", "C", "match", "C"),
    (r"\boxed{c}", "C", "match", "C"),
    ("B) buildings will be safer", "B", "match", "B"),
    ("The correct answer is **(D)**.", "D", "match", "D"),
    ("The correct answer is A. It is not C.", "C", "mismatch", "A"),
    ("A cat sat there", "A", "no_answer", None),
    (r"\boxed{3}", "3", "match", "3"),
]
HOSTILE = [r"9^{9^{9^{9}}}", "(10^7)!", "+".join(f"{i}^{{{i}}}" for i in range(1, 2001))]
USER_FILE = '''
from __future__ import annotations
import ctypes, os, signal, subprocess, sys, time
from dataclasses import dataclass
from srft_ray.verify import Verdict
@dataclass
class Config:  # with deferred annotations, works in registered modules only
    limit: int = 3
def forever():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        pass
ACTS = {
    "good": lambda: 1.0, "bad": lambda: False, "partial": lambda: 0.25, "nan": lambda: float("nan"),
    "text": lambda: "1.0", "none": lambda: None, "raise": lambda: 1 / 0, "exit": lambda: os._exit(0),
    "sys_exit": lambda: sys.exit(0), "segfault": lambda: ctypes.string_at(0), "memory": lambda: len(bytearray(10**9)),
    "slow": lambda: time.sleep(0.3) or 1.0,
    "hang": forever, "own": lambda: Verdict("no_answer", 0.5, 7), "given": lambda: Verdict("given", 1.0, None),
    "pid": lambda: Verdict("match", 1.0, str(os.getpid())), "sleeper": lambda: sleeper(),
    "heavy": lambda: Verdict("match", 1.0, ",".join(m for m in ("ray", "torch", "vllm") if m in sys.modules)),
}
def sleeper():
    open(os.environ["SLEEPER"], "w").write(str(subprocess.Popen(["sleep", "60"]).pid)); forever()
def score(response, reference, metadata):
    return ACTS[response]()
def two(response, reference):
    return response == reference
def one(response):
    return 1.0
number = 3
'''
EXPECTED = {
    "good": Verdict("match", 1.0, None), "bad": Verdict("mismatch", 0.0, None), "own": Verdict("no_answer", 0.5, "7"),
    "partial": Verdict("mismatch", 0.25, None), "hang": Verdict("timeout", 0.0, None),
    **{act: Verdict("error", 0.0, None) for act in
       ("nan", "text", "none", "raise", "exit", "sys_exit", "segfault", "memory", "given", "unknown act")},
}


def item(response: str, reference: str = "", metadata: dict | None = None) -> Item:
    return Item(response, reference, metadata or {})


@pytest.fixture(scope="module")
def user_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user") / "scorer.py"
    path.write_text(USER_FILE)
    return path


@pytest.fixture(scope="module")
def math() -> Iterator[Judge]:
    with contextlib.closing(Judge("math", timeout_s=1.0, num_workers=2)) as judge:
        judge.judge([item("1", "1")])
        yield judge


@pytest.fixture
def user(user_file: Path) -> Iterator[Callable[..., Judge]]:
    with contextlib.ExitStack() as stack:
        yield lambda function="score", **options: stack.enter_context(contextlib.closing(
            Judge("", f"{user_file}:{function}", **{"timeout_s": 0.7, "memory_mb": 256, **options})))


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


def test_golden_answers(math: Judge) -> None:
    verdicts = math.judge([item(response, reference) for response, reference, _, _ in GOLDEN])
    assert verdicts == [Verdict(verdict, float(verdict == "match"), answer) for *_, verdict, answer in GOLDEN]


def test_hostile_expressions_cost_one_timeout_each(math: Judge) -> None:
    easy = [item(r"\boxed{72}", "72")] * 20
    start = time.monotonic()
    verdicts = math.judge([*easy, *(item(rf"\boxed{{{text}}}", "5") for text in HOSTILE), *easy])
    assert [verdict.verdict for verdict in verdicts] == ["match"] * 20 + ["timeout"] * 3 + ["match"] * 20
    assert time.monotonic() - start < 3 * 1.0 + 0.5


def test_tasks_are_scored_and_processes_cost_little() -> None:
    with contextlib.closing(Judge("tasks")) as judge:
        rows = list(tasks.generate("sums+products+equations", "train", 128, 0))
        items = [Item(row["demonstration"], row["answer"], row["metadata"]) for row in rows]
        wrong = [Item("#### 123456789", rows[0]["answer"], rows[0]["metadata"]), Item("5", "5", rows[0]["metadata"])]
        assert [verdict.verdict for verdict in judge.judge(wrong)] == ["mismatch", "no_answer"]
        bounded, bare = [], []
        for _ in range(10):
            start = time.monotonic()
            assert judge.judge(items) == [Verdict("match", 1.0, row["answer"]) for row in rows]
            bounded.append(time.monotonic() - start)
            start = time.monotonic()
            for one in items:
                resolve("tasks", None)(one.response, one.reference, one.metadata)
            bare.append(time.monotonic() - start)
    assert min(bounded) < 100 * min(bare), "scoring itself takes a microsecond or two; a hand-over took 25 times that when this was written"


@pytest.mark.parametrize("num_workers", [1, 2])
def test_user_function_verdicts_and_order(user: Callable[..., Judge], num_workers: int) -> None:
    acts = [*EXPECTED, *["good", "partial", "own"] * 5]
    random.Random(0).shuffle(acts)
    verdicts = user(num_workers=num_workers).judge([item(act) for act in acts])
    assert dict(zip(acts, verdicts, strict=True)) == EXPECTED
    assert verdicts == [EXPECTED[act] for act in acts]


def test_user_function_without_metadata(user: Callable[..., Judge]) -> None:
    verdicts = user("two").judge([item("a", "a"), item("a", "b")])
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0]


def test_workers_are_light_replaced_quickly_and_reused(user: Callable[..., Judge]) -> None:
    judge = user()
    first, again, heavy, _ = judge.judge([item("pid"), item("pid"), item("heavy"), item("exit")])
    assert first == again and heavy.answer == ""
    start = time.monotonic()
    assert judge.judge([item("pid")])[0] != first
    assert time.monotonic() - start < 0.5


def test_a_timeout_ends_what_the_verifier_started(user: Callable[..., Judge], tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEEPER", str(tmp_path / "pid"))
    assert user().judge([item("sleeper")])[0].verdict == "timeout"
    assert wait_dead([int((tmp_path / "pid").read_text())], 1.0) == []


def test_an_item_that_cannot_be_sent_is_an_error(user: Callable[..., Judge]) -> None:
    verdicts = user().judge([item("good"), item("good", metadata={"lock": threading.Lock()}), item("good")])
    assert [verdict.verdict for verdict in verdicts] == ["match", "error", "match"]


def test_calls_from_several_threads(user: Callable[..., Judge]) -> None:
    judge, rewards = user(), {}
    threads = [threading.Thread(target=lambda act=act: rewards.update({act: judge.judge([item(act)] * 50)}))
               for act in ("good", "partial", "own")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rewards == {act: [EXPECTED[act]] * 50 for act in ("good", "partial", "own")}


def test_worn_out_worker_is_replaced_unnoticed(user: Callable[..., Judge]) -> None:
    verdicts = user().judge([item("pid")] * 1001)
    assert len({verdict.answer for verdict in verdicts}) == 2 and verdicts[0].answer == verdicts[999].answer


def test_judging_goes_on_after_a_worker_died_idle_and_after_close(user: Callable[..., Judge]) -> None:
    judge = user()
    pid = int(judge.judge([item("pid")])[0].answer)
    os.kill(pid, signal.SIGKILL)
    assert wait_dead([pid], 1.0) == []
    assert judge.judge([item("good")]) == [EXPECTED["good"]]
    judge.close()
    assert judge.judge([item("good")]) == [EXPECTED["good"]]


@pytest.mark.parametrize("response", ["good", "hang"])
def test_no_process_outlives_its_killed_owner(user_file: Path, response: str) -> None:
    # the forked sleeper holds the owner's end of the connection open
    program = (f"import os, time, threading\nfrom srft_ray.verify import Item, Judge\n"
               f"judge = Judge('', {str(user_file) + ':score'!r}, timeout_s=60, num_workers=2)\n"
               f"judge.judge([Item('good', '', {{}})])\n"
               f"if os.fork() == 0:\n    time.sleep(30)\n    os._exit(0)\n"
               f"threading.Thread(target=judge.judge, args=([Item({response!r}, '', {{}})],)).start()\n"
               f"print('ready', flush=True)\ntime.sleep(60)")
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    assert owner.stdout.readline() == "ready\n"
    family = children(owner.pid)
    keeper_and_workers = [pid for pid in family if b"keeper" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(keeper_and_workers) == 3
    owner.kill()
    owner.wait()
    assert wait_dead(keeper_and_workers, 4.0) == []
    for pid in set(family) - set(keeper_and_workers):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("name", "path", "message"), [
    ("maths", None, "did you mean 'math'"), ("", "{dir}/absent.py:score", "absent.py' is not a file"),
    ("", "{dir}/scorer.py", "file.py:function"), ("", "{dir}/scorer.py:absent", "has no function 'absent'"),
    ("", "{dir}/scorer.py:number", "has no function 'number'"), ("", "{dir}/scorer.py:one", "must take"),
    ("", "{dir}/broken.py:score", "SyntaxError"),
])
def test_resolve_names_what_is_wrong(user_file: Path, name: str, path: str | None, message: str) -> None:
    (user_file.parent / "broken.py").write_text("def score(:")
    path = path and path.format(dir=user_file.parent)
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        resolve(name, path)
    with contextlib.closing(Judge(name, path)) as judge, pytest.raises(UserError, match=message.replace(".", r"\.")):
        judge.judge([item("good")])


def gsm8k() -> list[Item]:
    rows = [json.loads(line)["answer"] for line in (DATA / "gsm8k/train.jsonl").open()]
    worked = [re.sub(r"<<.*?>>", "", row) for row in rows]
    return [item(text, text.rpartition("#### ")[2]) for text in worked]


def benchmark(name: str) -> list[Item]:
    text = (DATA / "benchmarks" / name).read_text()
    rows = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    answers = [row["answer"].removeprefix("\\boxed{").removesuffix("}") if row["answer"].startswith("\\boxed{")
               else row["answer"] for row in rows]
    return [item(f"So it is $\\boxed{{{answer}}}$.", row["answer"]) for row, answer in zip(rows, answers, strict=True)]


@needs_data
@pytest.mark.parametrize("name", ["AIME24.json", "AMC23.json", "MATH-500.json", "Minerva.json", "ARC-C.jsonl"])
def test_every_gold_answer_of_a_benchmark_matches_itself(math: Judge, name: str) -> None:
    assert {verdict.verdict for verdict in math.judge(benchmark(name))} == {"match"}


@needs_data
def test_worked_solutions_of_gsm8k_match(math: Judge) -> None:
    assert {verdict.verdict for verdict in math.judge(random.Random(0).sample(gsm8k(), 1000))} == {"match"}


@pytest.mark.parametrize(("number", "who"), [(signal.SIGKILL, "worker"), (signal.SIGKILL, "keeper"), (signal.SIGSTOP, "keeper")])
def test_processes_that_die_or_hang_under_a_question_are_asked_again(user: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch,
                                                                    number: int, who: str) -> None:
    judge = user(timeout_s=0.5)
    worker = int(judge.judge([item("pid")])[0].answer)
    monkeypatch.setattr("srft_ray.verify.judge.START_S", 0.2)
    victim = worker if who == "worker" else judge._process.pid
    threading.Timer(0.1, lambda: os.kill(victim, number)).start()
    assert judge.judge([item("slow")]) == [EXPECTED["good"]]
    assert wait_dead([victim], 2.0) == []


def test_processes_that_always_die_end_the_judging(user: Callable[..., Judge]) -> None:
    judge = user()
    start = judge._start

    def start_and_die() -> None:
        start()
        judge._process.kill()
    judge._stop()
    judge._start = start_and_die
    with pytest.raises(VerifierFailed, match="died or hung 3 times in a row"):
        judge.judge([item("good")])
