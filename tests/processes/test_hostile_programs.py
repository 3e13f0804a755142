"""More than two hundred hostile programs, as candidates of the verifier `code`: each gets a verdict in time,
none gets `match`, and none changes the verdict of another."""

import json
import time
from contextlib import closing
from pathlib import Path

import pytest

from srft_ray.verify import Item, VerifierPool
from tests.hostile import ACTS, HOSTILE_FILE
from tests.processes.test_hostile_verifiers import all_gone, check, folder, port

pytestmark = pytest.mark.full
__all__ = ["folder", "port"]  # fixtures

TIMEOUT_S = 2.0
TESTS = json.dumps({"fn_name": "solve", "inputs": [[3], [4]], "outputs": ["nine", "sixteen"]})
GOOD = "def solve(number):\n    return {3: 'nine', 4: 'sixteen'}[number]\n"
# The library is not importable for programs.
PRELUDE = HOSTILE_FILE.replace("from srft_ray.verify import Verdict", "Verdict = lambda *parts: parts")
WHERE = {
    "on import": "ACTS[NAME]()\ndef solve(number):\n    return 1\n",
    "in the call": "def solve(number):\n    return ACTS[NAME]()\n",
}


def item(program: str) -> Item:
    return Item(f"```python\n{program}```", TESTS, {})


@pytest.mark.parametrize("where", WHERE)
def test_hostile_programs_get_a_verdict_in_time(folder: Path, port: int, where: str) -> None:
    assert len(ACTS) * len(WHERE) >= 200
    metadata = {"outside": str(folder / "outside"), "port": port}
    wrong = []
    with closing(VerifierPool("code", timeout_s=TIMEOUT_S, num_workers=3, memory_mb=256)) as pool:
        assert [verdict.verdict for verdict in pool.verify([item(GOOD)] * 3)] == ["match"] * 3
        for act in ACTS:
            hostile = f"{PRELUDE}\nMETADATA.update({metadata!r})\nNAME = {act!r}\n{WHERE[where]}"
            start = time.monotonic()
            verdicts = pool.verify([item(GOOD), item(hostile), item(GOOD)])
            wall_s = time.monotonic() - start
            check(verdicts[1])
            names = [verdict.verdict for verdict in verdicts]
            if names[0] != "match" or names[2] != "match" or names[1] == "match":
                wrong.append((act, verdicts))
            # One that ends its worker is tried twice.
            if wall_s > 3 * TIMEOUT_S:
                wrong.append((act, wall_s))
    assert all_gone() == []
    assert wrong == []
