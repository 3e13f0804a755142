"""Memory and look-up time of the history of prompts: `python benchmarks/prompt_history.py [PROMPTS]`.

Each prompt is visited more often than the history shows. The memory is what the process takes more for it,
at most and at the end.
"""

import resource
import sys
import time

import numpy as np

from algorithms import SRPO
from srft_ray.data.history import VISIT, Chooser, PromptHistory

GROUPS = 10_000  # of a step
ROUNDS = 6
LOOKUPS = 20_000


def resident_mb() -> float:
    """Memory of this process now, in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def largest_mb() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def filled(prompts: int, rng: np.random.Generator) -> PromptHistory:
    """A history with ROUNDS visits of each prompt; one in eight prompts is solved."""
    history = PromptHistory(prompts, lag=2)
    step = 0
    for _ in range(ROUNDS):
        order = rng.permutation(prompts)
        for begin in range(0, prompts, GROUPS):
            visits = np.zeros(min(GROUPS, prompts - begin), VISIT)
            visits["row"] = order[begin : begin + GROUPS]
            visits["step"] = step
            visits["rollouts"] = 8
            visits["correct"] = rng.integers(1, 9, len(visits))
            history.extend(step + 1, visits)
            step += 1
    return history


def main() -> None:
    prompts = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    rng = np.random.default_rng(0)
    before_mb = resident_mb()
    started = time.perf_counter()
    history = filled(prompts, rng)
    extend_s = time.perf_counter() - started
    print(f"{prompts} prompts, {ROUNDS} visits each, {len(history)} held, in {history.until} steps")
    print(f"memory: tables {history.nbytes / 1e6:.0f} MB, process {resident_mb() - before_mb:.0f} MB more")
    print(f"memory at most: {largest_mb() - before_mb:.0f} MB more")
    print(f"a step of {GROUPS} groups: {1e3 * extend_s / history.until:.2f} ms")
    rows = rng.integers(0, prompts, LOOKUPS).tolist()
    started = time.perf_counter()
    for row in rows:
        history.visits(row, history.until - 1)
    print(f"a look-up: {1e6 * (time.perf_counter() - started) / LOOKUPS:.1f} microseconds")
    chooser, algorithm = Chooser(prompts, 0), SRPO()
    chooser.choose(algorithm, history.until, 0, history, history.until - 1)  # permutations are made once
    started = time.perf_counter()
    for place in range(LOOKUPS):
        chooser.choose(algorithm, history.until, place, history, history.until - 1)
    print(f"a choice of a prompt: {1e6 * (time.perf_counter() - started) / LOOKUPS:.1f} microseconds")
    started = time.perf_counter()
    size = len(history.to_bytes())
    print(f"in a checkpoint: {size / 1e6:.0f} MB, {time.perf_counter() - started:.2f} s")


if __name__ == "__main__":
    main()
