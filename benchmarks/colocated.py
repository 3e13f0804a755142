"""Step time of learners and engines that take turns on the same CPU cores, over that with cores of their own.

    python benchmarks/colocated.py [--steps 16] [--groups 16] [--repeats 1]

The tiny model, GRPO, staleness 0: the two never work at the same time. Separate, one learner and one engine
have half of the cores each. In turns, there are a learner and an engine for each core, and whoever works has
all of them. The runs alternate. A third run has as many learners and engines, which are separate: its
parameters must be bitwise those of the run in turns.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from srft_ray import fit, make_config
from srft_ray.observe.journal import read_json_lines

ROOT = Path(__file__).resolve().parents[1]
CORES = os.cpu_count() or 1
SETTINGS = {  # placement, and the numbers of learners and of engines
    "separate": ("separate", 1),
    "in turns": ("colocated", CORES),
    "separate, as many": ("separate", CORES),
}
WARM_UP = 3  # steps in which kernels compile and the processes start


def run(folder: str, name: str, setting: str, steps: int, groups: int) -> Path:
    """The directory of a finished run."""
    placement, number = SETTINGS[setting]
    values = {
        "run": {"name": name, "dir": folder, "device": "cpu"},
        "cluster": {"placement": placement},
        "model": {"path": str(ROOT / "examples/tiny/base"), "max_length": 256},
        "data": {"format": "tasks", "path": "sums+products", "size": 4096},
        "algorithm": {"name": "grpo"},
        "rollout": {"num_engines": number, "num_rollouts": 8, "max_new_tokens": 96},
        "learner": {"num_workers": number, "lr": 2e-4, "zero_stage": 0},
        "trainer": {"steps": steps, "groups_per_step": groups},
    }
    return fit(make_config(values)).run_dir


def median(run_dir: Path, key: str) -> float:
    """Over the steps after the warm-up, but for the last one, which publishes nothing."""
    return statistics.median(record[key] for record in read_json_lines(run_dir / "metrics.jsonl")[WARM_UP:-1])


def same(one: Path, other: Path, steps: int) -> bool:
    """Whether both runs ended at the same parameters, bit for bit."""
    states = [
        load_file(run_dir / f"checkpoints/step-{steps}/hf/model.safetensors") for run_dir in (one, other)
    ]
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=16, help="steps of each run (default %(default)s)")
    parser.add_argument("--groups", type=int, default=16, help="prompts per step (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each (default %(default)s)")
    options = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats):
            runs = {
                setting: run(folder, f"run-{repeat}-{number}", setting, options.steps, options.groups)
                for number, setting in enumerate(SETTINGS)
            }
            for setting, run_dir in runs.items():
                step, *parts = (median(run_dir, f"time/{name}") for name in ("step", "generation", "learner"))
                print(f"{setting}: step {step:.3f} s, generation {parts[0]:.3f}, learner {parts[1]:.3f}")
            separate, in_turns, as_many = runs.values()
            ratios.append(median(in_turns, "time/step") / median(separate, "time/step"))
            equal = same(in_turns, as_many, options.steps)
            print(f"ratio {ratios[-1]:.2f}; parameters bitwise equal: {equal}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
