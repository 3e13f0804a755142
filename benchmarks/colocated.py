"""Step time of learners and engines that take turns on the same CPU cores, over that with cores of their own.

    python benchmarks/colocated.py [--steps 16] [--groups 16] [--repeats 1]

The tiny model, GRPO, staleness 0: the two never work at the same time. Separate, each has half of the cores.
In turns, whoever works has all of them. The runs alternate. It also says whether the parameters of the two
are bitwise equal; sums over another number of threads may be rounded otherwise.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from srft_ray import fit, make_config
from srft_ray.observe.journal import read_json_lines

ROOT = Path(__file__).resolve().parents[1]
PLACEMENTS = ("separate", "colocated")
WARM_UP = 3  # steps in which kernels compile and the processes start


def run(folder: str, name: str, placement: str, steps: int, groups: int) -> Path:
    """The directory of a finished run."""
    values = {
        "run": {"name": name, "dir": folder, "device": "cpu"},
        "cluster": {"placement": placement},
        "model": {"path": str(ROOT / "examples/tiny/base"), "max_length": 256},
        "data": {"format": "tasks", "path": "sums+products", "size": 4096},
        "algorithm": {"name": "grpo"},
        "rollout": {"num_rollouts": 8, "max_new_tokens": 96},
        "learner": {"lr": 2e-4, "zero_stage": 0},
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
            runs = [
                run(folder, f"{placement}-{repeat}", placement, options.steps, options.groups)
                for placement in PLACEMENTS
            ]
            for placement, run_dir in zip(PLACEMENTS, runs, strict=True):
                times = [median(run_dir, key) for key in ("time/step", "time/generation", "time/learner")]
                print(
                    f"{placement}: step {times[0]:.3f} s, generation {times[1]:.3f}, learner {times[2]:.3f}"
                )
            separate, colocated = (median(run_dir, "time/step") for run_dir in runs)
            ratios.append(colocated / separate)
            print(
                f"ratio {ratios[-1]:.2f}; parameters bitwise equal: {same(*runs, options.steps)}", flush=True
            )
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
