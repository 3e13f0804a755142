"""An algorithm, a verifier and a callback of your own in one Python file. The argument: optimizer steps."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from algorithms import GRPO
from srft_ray import Callback, fit, make_config


@dataclass(frozen=True)
class LeaveOneOut(GRPO):
    """GRPO whose credit is the reward minus the mean reward of the prompt's other rollouts."""

    name = "leave_one_out"

    def advantages(self, group):
        others = len(group.rewards) - 1
        return [reward - (sum(group.rewards) - reward) / others for reward in group.rewards]


class PrintReward(Callback):
    def on_step(self, record):
        print(f"reward of step {record['step']}: {record['reward/mean']:.2f}")


if __name__ == "__main__":
    config = make_config(
        {
            "run": {"name": "one_file", "dir": tempfile.mkdtemp(prefix="srft_ray_example_")},
            "model": {"path": str(Path(__file__).parent / "tiny" / "base"), "max_length": 256},
            "data": {"format": "tasks", "path": "sums", "size": 256},
            "rollout": {"num_rollouts": 4, "max_new_tokens": 64},
            "trainer": {"steps": int(sys.argv[1]) if sys.argv[1:] else 4, "groups_per_step": 4},
        }
    )
    ends_well = lambda response, reference: response.strip().endswith(f"#### {reference}")  # noqa: E731
    fit(config, LeaveOneOut(), verifier=ends_well, callbacks=[PrintReward()])
