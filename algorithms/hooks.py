"""What an algorithm may decide beside its loss: prompts, prefixes, replays, and figures over many tokens."""

import random
from collections.abc import Mapping, Sequence

from torch import Tensor

from algorithms.batch import Batch
from algorithms.term import PerToken
from algorithms.types import Group, Visit


class Hooks:
    """The decisions of an algorithm that has none of its own; `Algorithm` says when they are asked for."""

    def keeps(self, visits: Sequence[Visit], step: int, rng: random.Random) -> bool:
        """False: another prompt takes the place of the one with these visits, which is not sampled.

        Called if `uses_history`. `visits` are the newest of the prompt, oldest first, and end more than
        rollout.max_staleness steps before `step`, which is the run's, as that of a visit is. If none of the
        prompts that are tried for a place is kept, the first of them is trained on.
        """
        return True

    def replays(self, pass_rate: float, rng: random.Random) -> bool:
        """Whether a place in a step goes to a prompt of which an earlier rollout joins the group.

        Called if `replay_age`; the group then has one new rollout less. `pass_rate` is that of the newest
        step that the place may know of, 0 to 1.
        """
        return False

    def replay_weight(self, visit: Visit) -> float:
        """How likely a prompt is replayed whose newest visit is this one, at least 0.

        Of the outcomes (numbers of rollouts and of correct ones) of all prompts that can be replayed, one is
        drawn with a probability proportional to this, and then one of its prompts.
        """
        return 1.0

    def prefix(self, group: Group, sample: int, step: int, rng: random.Random) -> int:
        """How many tokens of the group's first demonstration rollout `sample` starts with.

        `step` counts from the first step of the stage. `rng` is seeded by run.seed, the group and the sample;
        with `shares_prefix` it begins at the same numbers for all samples of the group. At least one
        token is always sampled: of the demonstration, at most max_new_tokens - 1 tokens are used.
        """
        return 0

    def has_signal(self, group: Group) -> bool:
        """False: another group takes the place of this one, up to `max_refills` times."""
        return True

    def token_advantages(self, batch: Batch, values_BT: Tensor) -> Tensor:
        """The advantage of each token from the critic's values of the states before them, (B, T).

        Called if `uses_critic`. Added to the value it is what the critic learns.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define token_advantages")

    def rescaled(self, advantages_BT: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        """These advantages as the terms see them; mean and standard deviation are those of all rollout tokens
        of the step, float64 scalars."""
        return advantages_BT

    @property
    def score(self) -> PerToken:
        """What ranks the rollout tokens of an update, float (B, T), if a term needs "token_scores"."""
        raise NotImplementedError(f"{type(self).__name__} does not define score")

    def cutoffs(self, scores: Tensor) -> Mapping[str, float]:
        """Values of all sequences that follow from the scores of all rollout tokens of the update, (N,)."""
        return {}
