"""A method of one's own from existing terms and one new weight. Run it, or use it from YAML:

algorithm: {path: examples/custom_algorithm.py:Confident, ceiling: 0.7}
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from algorithms import GRPO, Term, losses, selections


def improbable(ceiling):
    """1 for tokens that the policy gives less than `ceiling`, else 0: what it knows already is not repeated."""
    return lambda batch, policy: (policy.logprobs_BT.exp() < ceiling).to(policy.logprobs_BT.dtype)


@dataclass(frozen=True)
class Confident(GRPO):
    """GRPO beside SFT on the tokens of the demonstration that the policy does not expect"""

    name = "confident"
    uses_demonstrations = True
    ceiling: float = 0.9

    def terms(self):
        return (
            self.policy_term(),
            Term("sft_demo", selections.demonstrations, losses.nll, improbable(self.ceiling)),
        )


if __name__ == "__main__":
    from srft_ray import fit, make_config

    config = make_config(
        {
            "run": {"dir": tempfile.mkdtemp(prefix="srft_ray_example_")},
            "learner": {"lr": 2e-4},
            "model": {"path": str(Path(__file__).parent / "tiny" / "base"), "max_length": 256},
            "data": {"format": "tasks", "path": "sums", "size": 256},
            "rollout": {"num_rollouts": 4, "max_new_tokens": 64},
            "trainer": {"steps": 2, "groups_per_step": 4},
        }
    )
    print("loss", fit(config, algorithm=Confident(ceiling=0.8)).summary["final"]["loss"])
