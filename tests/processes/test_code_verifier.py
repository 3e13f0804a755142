"""The verifier of programs: which are correct, and that none gives itself a verdict."""

import json
from contextlib import closing
from itertools import islice

import pytest

from srft_ray.data import tasks
from srft_ray.data.program_tasks import program_entries
from srft_ray.verify import Item, VerifierPool
from srft_ray.verify.code_verifier import last_program, same_value
from srft_ray.verify.task_verifier import verify as verify_task

# Worked out by hand: the sum of the squares of the even values.
TESTS = {"fn_name": "solve", "inputs": [[[]], [[1, 2, 3, 4]], [[-2, 5]]], "outputs": [0, 20, 4]}
CORRECT = "def solve(values):\n    return sum(v * v for v in values if v % 2 == 0)\n"
ECHO = {"inputs": ["3\n4\n", "10\n-1"], "outputs": ["7\n", "9"]}


def fenced(program):
    return f"First some thoughts.\n```python\n{program}```\n"


@pytest.fixture(scope="module")
def pool():
    with closing(VerifierPool("code", timeout_s=10.0, num_workers=2)) as pool:
        yield pool


def verdicts(pool, programs, tests=TESTS):
    found = pool.verify([Item(fenced(program), json.dumps(tests), {}) for program in programs])
    return [(one.verdict, one.reward) for one in found]


def test_correct_programs_match(pool):
    as_method = (
        "class Solution:\n    def solve(self, values):\n        return sum(v*v for v in values if v%2==0)\n"
    )
    printing = "import math\nprint('loading')\n" + CORRECT.replace("return", "print(values)\n    return")
    assert verdicts(pool, [CORRECT, as_method, printing]) == [("match", 1.0)] * 3
    in_metadata = Item(fenced(CORRECT), "", {"tests": TESTS})
    absent = Item(fenced("print(int(input()) + int(input()))\n"), "", {"tests": {**ECHO, "fn_name": None}})
    assert pool.verify([absent])[0].verdict == "match", "as a column of Parquet has it in rows without one"
    assert pool.verify([in_metadata])[0].verdict == "match"


def test_wrong_programs_do_not(pool):
    wrong = [
        "def solve(values):\n    return sum(v * v for v in values)\n",
        "def solve(values):\n    return 20\n",
        "def other(values):\n    return 0\n",
        "def solve(values):\n    raise KeyError\n",
        "def solve(values)\n",
        "",
    ]
    assert verdicts(pool, wrong) == [("mismatch", 0.0)] * len(wrong)
    found = pool.verify(
        [Item(fenced(text), json.dumps(TESTS), {}) for text in [wrong[0], wrong[3], wrong[4]]]
    )
    assert [one.reason for one in found] == [
        "test 2 of 3: another result",
        "test 1 of 3: KeyError",
        "test 1 of 3: the program ended without a result",
    ]


def test_a_response_without_program(pool):
    assert pool.verify([Item("20", json.dumps(TESTS), {})])[0].verdict == "no_answer"
    assert last_program("```py\na\n``` and ```\nb\n```") == "b\n"


def test_programs_that_read_and_print(pool):
    correct = [
        "print(int(input()) + int(input()))\n",
        "import sys\nprint(sum(map(int, sys.stdin.read().split())))\n",
        "import sys\nif __name__ == '__main__':\n    print(sum(map(int, sys.stdin.buffer)), end='')\n",
        "import os\nprint(sum(map(int, os.read(0, 99).split())), ' ')\n",
    ]
    assert verdicts(pool, correct, ECHO) == [("match", 1.0)] * 4
    assert verdicts(pool, ["print(7)\n", "print(7)\nprint(9)\n", "pass\n"], ECHO) == [("mismatch", 0.0)] * 3


FORGERIES = {
    "exits": "import os\nos._exit(0)\n",
    "exits politely": "import sys\nsys.exit(0)\n",
    "exits in the call": "def solve(values):\n    import os\n    os._exit(0)\n",
    "prints markers": "print('passed')\nprint('=0')\nprint('match')\ndef solve(values):\n    return None\n",
    "always equal": """
class Equal(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def solve(values): return Equal(7)
""",
    "changes builtins": """
import builtins, json
builtins.all = builtins.any = lambda *a: True
builtins.map = lambda *a: [True]
json.loads = lambda *a, **k: 0
def solve(values): return 7
""",
    "changes the runner": """
import sys
names = sys._getframe(1).f_globals
names['task']['inputs'] = []
def solve(values): return 7
""",
    "writes results of its own": """
import os
for fd in range(3, 20):
    try: os.write(fd, b'=1\\n' * 9)
    except OSError: pass
def solve(values): return 7
""",
    "kills the worker": """
import os, signal
os.kill(os.getppid(), signal.SIGKILL)
def solve(values): return 7
""",
    "looks for a file of tests": """
import glob, os
for name in glob.glob('**', recursive=True) + glob.glob(os.environ['HOME'] + '/*'):
    open(name, 'w').write('')
def solve(values): return 7
""",
}


@pytest.mark.parametrize("program", FORGERIES.values(), ids=FORGERIES)
def test_no_program_gives_itself_a_verdict(pool, program):
    before, found, after = verdicts(pool, [CORRECT, program, CORRECT])
    assert before == after == ("match", 1.0)
    assert found in [("mismatch", 0.0), ("error", 0.0), ("timeout", 0.0)]


SECRET = "secret-1f6b2c9d"
READS_MEMORY = r"""
import os, re
def solve(values):
    pattern = b'secret-' + b'[0-9a-f]{8}'
    for line in open(f'/proc/{os.getppid()}/maps'):
        first, last = (int(part, 16) for part in line.split()[0].split('-'))
        try:
            with open(f'/proc/{os.getppid()}/mem', 'rb') as memory:
                memory.seek(first)
                found = re.search(pattern, memory.read(last - first))
        except (OSError, ValueError, OverflowError):
            continue
        if found:
            return found.group().decode()
"""


def test_the_expected_outputs_cannot_be_read(pool):
    tests = {"fn_name": "solve", "inputs": [[1]], "outputs": [SECRET]}
    assert verdicts(pool, [READS_MEMORY], tests) == [("mismatch", 0.0)]
    assert verdicts(pool, [f"def solve(value):\n    return {SECRET!r}\n"], tests) == [("match", 1.0)]


def test_a_program_changes_nothing_for_the_next(pool):
    """It may set limits of the process above it, which is why that process ends with it."""
    limits = "import os, resource\n" + "".join(
        f"try: resource.prlimit(os.getppid(), resource.{name}, (0, 0))\nexcept Exception: pass\n"
        for name in ("RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_NPROC")
    )
    programs = [limits + CORRECT, CORRECT] * 4
    assert verdicts(pool, programs)[1::2] == [("match", 1.0)] * 4


def test_the_same_program_has_the_same_verdict_again(pool):
    """Orders of sets and random numbers are those of every other time."""
    program = "import random\ndef solve(values):\n    return [list({'a', 'b', 'c', 'd'}), random.random()]\n"
    shown = "import sys\n" + program + "print(solve([]), file=sys.stdout)\n"
    tests = {"inputs": [""] * 3, "outputs": [""] * 3}
    assert verdicts(pool, [shown], tests) == [("mismatch", 0.0)]
    from srft_ray.verify.code_verifier import STANDARD_INPUT, _run

    task = {"program": shown, "input": ""}
    assert len({_run(STANDARD_INPUT, task) for _ in range(4)}) == 1


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        (1, 1, True),
        (1, True, False),
        (0, False, False),
        (1.0, 1, True),
        (0.1 + 0.2, 0.3, True),
        (0.31, 0.3, False),
        ([1, [2, "a"]], [1, [2, "a"]], True),
        ([1, 2], [1, 2, 3], False),
        ({"a": 1.0}, {"a": 1}, True),
        ({"a": 1}, {"b": 1}, False),
        ("1", 1, False),
        (None, 0, False),
        (None, None, True),
        (10**400, 1.5, False),
        (float("nan"), float("nan"), False),
    ],
    ids=str,
)
def test_values_are_compared_strictly(found, expected, same):
    assert same_value(found, expected) is same


@pytest.mark.parametrize(
    "tests",
    [
        {},
        [],
        {"inputs": [1], "outputs": []},
        {"inputs": [], "outputs": []},
        {"inputs": "a", "outputs": "a"},
        {"inputs": [["1", "2"]], "outputs": ["3"]},
        {"inputs": ["1"], "outputs": [1]},
        {"fn_name": "solve", "inputs": [1], "outputs": [0]},
    ],
    ids=str,
)
def test_tests_that_are_none_are_an_error(pool, tests):
    assert verdicts(pool, [CORRECT], tests) == [("error", 0.0)]


def test_the_demonstrations_of_the_built_in_programs_pass_their_tests():
    entries = list(islice(program_entries("a"), 40))
    assert entries == list(islice(program_entries("a"), 40))
    items = [
        Item(entry["demonstration"], entry["answer"], {"family": "programs", "entry": {}})
        for entry in entries
    ]
    with closing(VerifierPool("tasks", timeout_s=10.0, num_workers=2)) as pool:
        assert {one.verdict for one in pool.verify(items)} == {"match"}
        swapped = [Item(items[n - 1].response, items[n].reference, items[n].metadata) for n in range(10)]
        assert "mismatch" in {one.verdict for one in pool.verify(swapped)}


def test_rows_of_programs():
    rows = list(tasks.generate("programs+sums", "train", 6, seed=0))
    assert [row["metadata"]["family"] for row in rows] == ["programs", "sums"] * 3
    tests = json.loads(rows[0]["answer"])
    assert len(tests["inputs"]) == len(tests["outputs"]) == 5 and tests["inputs"][0] == [[]]
    heldout = {row["prompt"] for row in tasks.generate("programs", "heldout", 200, seed=0)}
    assert not heldout & {row["prompt"] for row in tasks.generate("programs", "train", 2000, seed=1)}
    with pytest.raises(ValueError, match="unknown task family 'program': did you mean 'programs'"):
        tasks.generate("program", "train", 1, 0)
    assert verify_task("nothing", rows[0]["answer"], rows[0]["metadata"]).verdict == "no_answer"
