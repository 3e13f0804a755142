"""The Python API: a config from a dictionary, an algorithm as an instance, the result of a run."""

import sys
import tempfile
from pathlib import Path

from algorithms import SFT, SRFT, TwoStage
from srft_ray import fit, make_config

BASE = Path(__file__).resolve().parent / "tiny" / "base"


def main(steps: int = 4) -> None:
    runs = tempfile.mkdtemp(prefix="srft_ray_example_")
    config = make_config(
        {
            "run": {"name": "api", "dir": runs},
            "model": {"path": str(BASE), "max_length": 256},
            "data": {"format": "tasks", "path": "sums", "size": 256},
            "rollout": {"num_rollouts": 4, "max_new_tokens": 64},
            "learner": {"lr": 2e-4},
            "trainer": {"steps": steps, "groups_per_step": 4},
        }
    )
    # One step of SFT, then SRFT whose weight on demonstrations is halved.
    result = fit(config, algorithm=TwoStage(first=SFT(), second=SRFT(sft_scale=0.25), first_steps=1))
    print(
        f"trained {result.summary['steps']} steps; reward {result.summary['final']['reward/mean']:.2f}; "
        f"model in {result.model}"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
