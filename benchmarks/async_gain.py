"""Gain of `max_staleness` 1 over 0 in step time, where generation and learning take similarly long.

    python benchmarks/async_gain.py [--steps 24] [--groups 16] [--only simulated]

Measured: the tiny model, one engine and one learner, the same config twice through `srft-ray scale`. To
overlap, generation and learning need a CPU core each, beside what Ray itself needs. With fewer groups per
step the times of generation and learning come closer to each other, and the fixed time of a step has a larger
share.

Simulated: the coordinator's rule applied to stated times, with and without random variation.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np

from srft_ray import make_config
from srft_ray.commands.scale import scale

ROOT = Path(__file__).resolve().parents[1]
SIMULATED_STEPS = 400


def simulate(
    generation_s: float,
    learner_s: float,
    publish_s: float,
    steps: int,
    max_staleness: int,
    jitter: float = 0.0,
    seed: int = 0,
) -> list[float]:
    """Seconds of each step when the coordinator's rule is applied event by event.

    The rollouts of step s start when the engines have finished those of step s - 1 and version s -
    max_staleness is published. The update of step s starts when the rollouts of step s and version s are
    there.

    The times of all phases vary independently. They are log-normal with the given means; `jitter` is the
    standard deviation of their logarithm.
    """
    noise = np.random.default_rng(seed).standard_normal((steps, 3))
    factors = np.exp(jitter * noise - jitter**2 / 2)
    durations = factors * (generation_s, learner_s, publish_s)
    generated = 0.0  # when the rollouts of the newest step are there
    published = [0.0]  # published[v]: when version v is there
    for step, (generation, learner, publish) in enumerate(durations):
        admitted = published[max(0, step - max_staleness)]
        generated = max(generated, admitted) + generation
        started = max(generated, published[step])
        published.append(started + learner + publish)
    return np.diff(published).tolist()


def benchmark_config(folder: str, groups: int):
    return make_config(
        {
            "run": {"name": "async", "dir": folder},
            "model": {"path": str(ROOT / "examples/tiny/base"), "max_length": 256},
            "data": {"format": "tasks", "path": "sums+products", "size": 4096},
            # Without demonstrations, which would be work for the learner alone.
            "algorithm": {"name": "grpo"},
            "rollout": {"num_rollouts": 8, "max_new_tokens": 96},
            # The rate of the quickstart: after some steps responses are long enough to take time.
            "learner": {"lr": 2e-4, "zero_stage": 0},
            "trainer": {"groups_per_step": groups},
        }
    )


def measured(steps: int, groups: int) -> float:
    """Prints the table of both runs and their comparison; returns the ratio of the step times, below 1 for a
    gain."""
    with tempfile.TemporaryDirectory() as folder:
        print(scale(benchmark_config(folder, groups), [1], [1], [0, 1], steps, None), flush=True)
        findings = json.loads((Path(folder) / "async-scale/scale.json").read_text())
    sequential, overlapped = findings["measured"]
    ratio = overlapped["step_s"] / sequential["step_s"]
    phases = sequential["generation_s"], sequential["learner_s"]
    generation_ratio = overlapped["generation_s"] / sequential["generation_s"]
    learner_ratio = overlapped["learner_s"] / sequential["learner_s"]
    print(
        f"\nmeasured: {overlapped['step_s']:.3f} s / {sequential['step_s']:.3f} s = {ratio:.2f}; "
        f"the longer of generation and learner is {max(phases) / min(phases):.2f} times the other; "
        f"while they overlap generation takes {generation_ratio:.2f} "
        f"and the learner {learner_ratio:.2f} times as long"
    )
    return ratio


def simulated(generation: float, learner: float, publish: float, jitter: float) -> float:
    """Prints and returns the ratio of the median step times."""

    def median_step(staleness: int) -> float:
        return statistics.median(simulate(generation, learner, publish, SIMULATED_STEPS, staleness, jitter))

    sequential = median_step(0)
    overlapped = median_step(1)
    ratio = overlapped / sequential
    print(
        f"simulated, generation {generation:g} s, learner {learner:g} s, publish {publish:g} s, "
        f"jitter {jitter:.0%}: {overlapped:.3f} s / {sequential:.3f} s = {ratio:.2f}"
    )
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=24, help="steps of each measured run (default %(default)s)"
    )
    parser.add_argument("--groups", type=int, default=16, help="prompts per step (default %(default)s)")
    parser.add_argument("--only", choices=("measured", "simulated"), help="one of the two (default both)")
    options = parser.parse_args()
    if options.only != "measured":
        for jitter in (0.0, 0.1, 0.3):
            simulated(1.0, 1.0, 0.05, jitter)
    if options.only != "simulated":
        measured(options.steps, options.groups)


if __name__ == "__main__":
    main()
