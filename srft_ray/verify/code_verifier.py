"""The verifier of programs: it runs the tests of a candidate's Python program.

The program runs in a process below the worker and is given the inputs only; what it returns or prints is
compared with the expected outputs here. So a program that exits, prints what a test might expect, or changes
builtins, `__eq__` or files cannot give itself a verdict. The worker's memory, which holds the expected
outputs, is hidden from it, and the worker ends with the item. `sandbox` tells what else is prevented.

Tests are an object with `inputs` and `outputs`, lists of equal length. With `fn_name`, each input is the list
of arguments of a call of this function (or method of a class `Solution`), and each output what it returns.
Without, each input is the text on standard input, and each output the text on standard output.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

from srft_ray.verify import sandbox
from srft_ray.verify.verifier import Verdict

FENCE = re.compile(r"```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
MAX_OUTPUT_BYTES = 2**22  # of a program, over all calls; the rest is not read
TOLERANCE = 1e-6  # relative, of floating-point outputs

# Every call has fresh arguments, and what the program prints is not among the results.
CALLS = """
import json, os, random, sys
task = json.load(sys.stdin)
results = os.fdopen(os.dup(1), "w", encoding="utf-8")
null = os.open(os.devnull, os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
random.seed(0)
names = {"__name__": "program"}
exec(compile(task["program"], "program.py", "exec"), names)
name = task["fn_name"]
function = names[name] if name in names else getattr(names["Solution"](), name)
for arguments in task["inputs"]:
    try:
        line = "=" + json.dumps(function(*arguments))
    except Exception as error:
        line = "!" + type(error).__name__
    print(line, file=results, flush=True)
"""
# The text is given as a file, so that programs may read standard input in any way.
STANDARD_INPUT = """
import json, os, random, sys, tempfile
task = json.load(sys.stdin)
file = tempfile.TemporaryFile()
file.write(task["input"].encode())
file.flush()
file.seek(0)
os.dup2(file.fileno(), 0)
sys.stdin = open(0, encoding="utf-8")
random.seed(0)
exec(compile(task["program"], "program.py", "exec"), {"__name__": "__main__"})
"""


def verify(response: str, reference: str, metadata: dict) -> Verdict:
    """`match` if the program in the last code block of the response passes all tests.

    Args:
        reference: the tests as JSON, unless `metadata` has them under `tests`.

    Raises:
        ValueError: the tests are not as this module describes.
    """
    program = last_program(response)
    if program is None:
        return Verdict("no_answer", 0.0, None, "no block of Python code")
    tests = _checked(metadata.get("tests") or json.loads(reference))
    # From here on, nothing that the program starts may read the tests from this process.
    sandbox.hide_memory()
    failure = _failed_call(program, tests) if tests.get("fn_name") else _failed_text(program, tests)
    if failure is None:
        return Verdict("match", 1.0, program, f"{len(tests['inputs'])} tests passed")
    return Verdict("mismatch", 0.0, program, failure)


def last_program(response: str) -> str | None:
    """What stands in the last fenced block of code."""
    found = FENCE.findall(response)
    return found[-1] if found else None


def same_value(found: Any, expected: Any) -> bool:
    """Whether two JSON values are equal; numbers with a fraction up to TOLERANCE, and true is not 1."""
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected
    if isinstance(found, float) or isinstance(expected, float):
        numbers = isinstance(found, int | float) and isinstance(expected, int | float)
        return numbers and _close(found, expected)
    if type(found) is not type(expected):
        return False
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same_value, found, expected))
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same_value(found[k], expected[k]) for k in expected)
    return found == expected


def _close(found: float, expected: float) -> bool:
    with suppress(OverflowError):  # an integer that no float can hold
        return math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return False


def _checked(tests: Any) -> dict[str, Any]:
    lists = [tests.get(name) for name in ("inputs", "outputs")] if isinstance(tests, dict) else []
    if not lists or not all(isinstance(items, list) for items in lists) or len({*map(len, lists)}) != 1:
        raise ValueError("the tests of a program must have the lists inputs and outputs, of equal length")
    if not lists[0]:
        raise ValueError("a program must have a test")
    if tests.get("fn_name"):
        if not all(isinstance(arguments, list) for arguments in lists[0]):
            raise ValueError("each of the inputs of fn_name must be the list of its arguments")
    elif not all(isinstance(text, str) for items in lists for text in items):
        raise ValueError("without fn_name, inputs and outputs must be texts")
    return tests


def _failed_call(program: str, tests: dict[str, Any]) -> str | None:
    """Why the program failed; None if all calls return what is expected."""
    expected = tests["outputs"]
    task = {"program": program, "fn_name": tests["fn_name"], "inputs": tests["inputs"]}
    lines = _run(CALLS, task, len(expected)).split(b"\n")[:-1]
    for number, value in enumerate(expected):
        where = f"test {number + 1} of {len(expected)}"
        if number >= len(lines):
            return f"{where}: the program ended without a result"
        kind, text = lines[number][:1], lines[number][1:]
        if kind != b"=":
            return f"{where}: {text.decode(errors='replace')}"
        if not same_value(_parsed(text), value):
            return f"{where}: another result"
    return None


def _failed_text(program: str, tests: dict[str, Any]) -> str | None:
    """Why the program failed; None if it prints what is expected for every text."""
    for number, (text, expected) in enumerate(zip(tests["inputs"], tests["outputs"], strict=True)):
        printed = _run(STANDARD_INPUT, {"program": program, "input": text})
        if _lines(printed.decode(errors="replace")) != _lines(expected):
            return f"test {number + 1} of {len(tests['inputs'])}: another output"
    return None


def _lines(text: str) -> list[str]:
    """Without white space at the ends of lines and of the text."""
    return [line.rstrip() for line in text.strip().splitlines()]


def _parsed(text: bytes) -> Any:
    """The value that the program sent; a value that equals no expected one if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return object


def _run(runner: str, task: dict[str, Any], lines: int | None = None) -> bytes:
    """What a process below this one sends for a task, up to so many lines. All of its group has ended then.

    It may take as long as the supervisor of this worker lets it.
    """
    command = [sys.executable, "-s", "-S", "-P", "-B", "-c", runner]
    # A fixed hash seed: the same program has the same verdict again.
    environment = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PATH": os.environ.get("PATH", os.defpath)}
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**environment, "HOME": os.getcwd(), "TMPDIR": os.getcwd()},
        start_new_session=True,
    )
    try:
        with suppress(BrokenPipeError), child.stdin:
            child.stdin.write(json.dumps(task).encode())
        return _read(child.stdout.fileno(), lines)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()


def _read(fd: int, lines: int | None) -> bytes:
    """Until the end, or so many lines, or MAX_OUTPUT_BYTES."""
    found = b""
    while len(found) < MAX_OUTPUT_BYTES and (lines is None or found.count(b"\n") < lines):
        piece = os.read(fd, 65_536)
        if not piece:
            break
        found += piece
    return found[:MAX_OUTPUT_BYTES]
