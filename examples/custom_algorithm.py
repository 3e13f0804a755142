"""An algorithm of your own, made of existing terms and one new weight. Run this file, or use it from YAML:

algorithm: {path: examples/custom_algorithm.py:Confident, ceiling: 0.7}
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from algorithms import GRPO, Term, losses, selections


def improbable(ceiling):
    """1 for tokens to which the policy gives a probability below `ceiling`, else 0."""
    return lambda batch, policy: (policy.logprobs_BT.exp() < ceiling).to(policy.logprobs_BT.dtype)


@dataclass(frozen=True)
class Confident(GRPO):
    """GRPO, and SFT on those tokens of the demonstration that the policy finds improbable"""

    name = "confident"
    uses_demonstrations = True
    ceiling: float = 0.9

    def terms(self):
        weight = improbable(self.ceiling)
        return (self.policy_term(), Term("sft_demo", selections.demonstrations, losses.nll, weight))


if __name__ == "__main__":
    from srft_ray import fit, make_config

    sections = {"run": {"dir": tempfile.mkdtemp()}, "data": {"format": "tasks", "path": "sums", "size": 256}}
    sections["model"] = {"path": str(Path(__file__).parent / "tiny" / "base"), "max_length": 256}
    sections["rollout"] = {"num_rollouts": 4, "max_new_tokens": 64}
    sections["trainer"] = {"steps": 2, "groups_per_step": 4}
    result = fit(make_config(sections | {"learner": {"lr": 2e-4}}), algorithm=Confident(ceiling=0.8))
    print("loss", result.summary["final"]["loss"])
