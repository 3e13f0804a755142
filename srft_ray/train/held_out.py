"""The held-out loss: how probable the policy finds demonstrations that it is not trained on."""

from collections.abc import Sequence
from dataclasses import replace

from algorithms import Group
from srft_ray.train.learner import Learner


def held_out_figures(learner: Learner, groups: Sequence[Group], step: int) -> dict[str, float]:
    """Loss and entropy of the demonstrations of an evaluation set after `step` steps; a collective.

    Args:
        groups: this rank's share of the set.

    Returns:
        Means over all demonstration tokens of the set at temperature 1, in nats, equal on all ranks; empty if
        the set has no demonstrations.
    """
    given = [replace(group, completions=group.demonstrations) for group in groups]
    micro_batches = learner.micro_batches(given, step, start=0, shows_demonstrations=False)
    sums, _ = learner.score(micro_batches, temperature=1.0, keep_as_old=False)
    tokens = sums["tokens/demo"]
    if not tokens:
        return {}
    return {
        "demo_loss": float(sums["surprise/demo"] / tokens),
        "demo_entropy": float(sums["entropy/demo"] / tokens),
    }
