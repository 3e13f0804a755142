"""Step time with max_staleness 1 over that with 0, where generation and learning take similarly long: measured here, and simulated.

    python benchmarks/async_gain.py [--steps 24] [--groups 16] [--only simulated]

Measured: the tiny model, one engine and one learner, the same config twice through `srft-ray scale`. Both sides need a core of
their own to overlap, beside what Ray itself needs. With fewer groups a step, generation and learner come closer to each other, and
the fixed cost of a step weighs more. Simulated: the coordinator's rule over stated stage times, with and without jitter.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from srft_ray import make_config
from srft_ray.commands.pipeline_model import simulate
from srft_ray.commands.scale import scale

ROOT = Path(__file__).resolve().parents[1]
SIMULATED_STEPS = 400


def benchmark_config(folder: str, groups: int):
    return make_config(
        {
            "run": {"name": "async", "dir": folder},
            "model": {"path": str(ROOT / "examples/tiny/base"), "max_length": 256},
            "data": {"format": "tasks", "path": "sums+products", "size": 4096},
            "algorithm": {
                "name": "grpo"
            },  # without demonstrations, which would be work for the learner alone
            "rollout": {"num_rollouts": 8, "max_new_tokens": 96},
            "learner": {
                "lr": 2e-4,
                "zero_stage": 0,
            },  # as in the quickstart: after some steps responses are long enough to take time
            "trainer": {"groups_per_step": groups},
        }
    )


def measured(steps: int, groups: int) -> float:
    """The ratio, after the table of both runs."""
    with tempfile.TemporaryDirectory() as folder:
        print(scale(benchmark_config(folder, groups), [1], [1], [0, 1], steps, None), flush=True)
        together, apart = json.loads((Path(folder) / "async-scale/scale.json").read_text())["measured"]
    longer = max(together["generation_s"], together["learner_s"]) / min(
        together["generation_s"], together["learner_s"]
    )
    print(
        f"\nmeasured: {apart['step_s']:.3f} s / {together['step_s']:.3f} s = {apart['step_s'] / together['step_s']:.2f}; the longer of "
        f"generation and learner is {longer:.2f} times the other; while they overlap generation takes "
        f"{apart['generation_s'] / together['generation_s']:.2f} and the learner {apart['learner_s'] / together['learner_s']:.2f} times as long"
    )
    return apart["step_s"] / together["step_s"]


def simulated(generation: float, learner: float, publish: float, jitter: float) -> float:
    """The ratio of median step times, printed."""
    together, apart = (
        statistics.median(simulate(generation, learner, publish, SIMULATED_STEPS, staleness, jitter))
        for staleness in (0, 1)
    )
    print(
        f"simulated, generation {generation:g} s, learner {learner:g} s, publish {publish:g} s, jitter {jitter:.0%}: "
        f"{apart:.3f} s / {together:.3f} s = {apart / together:.2f}"
    )
    return apart / together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--groups", type=int, default=16, help="prompts a step")
    parser.add_argument("--only", choices=("measured", "simulated"))
    options = parser.parse_args()
    if options.only != "measured":
        for jitter in (0.0, 0.1, 0.3):
            simulated(1.0, 1.0, 0.05, jitter)
    if options.only != "simulated":
        measured(options.steps, options.groups)


if __name__ == "__main__":
    main()
