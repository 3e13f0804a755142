"""AdaBack: a part of the demonstration is given, and its length is searched for each prompt."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from algorithms.hinted import HintedGRPO, hint_length
from algorithms.settings import limited
from algorithms.types import Group, Visit


@dataclass(frozen=True)
class AdaBack(HintedGRPO):
    """AdaBack: GRPO on what follows a part of the demonstration, whose length a bisection finds per prompt

    All rollouts of a group continue the same first tokens of the demonstration. Their number is uniform on
    the prompt's interval, at first from none to all but the last two. If the share of correct rollouts is at
    least `threshold`, the length becomes the upper end of the interval, else the lower end. The interval
    follows from the newest four visits of the prompt: what is older is forgotten, and a newer outcome counts
    more than an older one that contradicts it, so that the search follows a policy that improves. The
    threshold, how the interval widens again, and the coefficient of the moving average with which the authors
    begin at prompts that were seen rarely are not known; here the threshold is 0.5, and each prompt begins
    with the whole interval. A visit counts from rollout.max_staleness + 1 steps later on.
    """

    name: ClassVar[str] = "adaback"
    paper: ClassVar[str] = "after arXiv 2506.18110, from a summary and reviews"
    uses_history: ClassVar[bool] = True
    shares_prefix: ClassVar[bool] = True
    threshold: float = limited(0.5, least=0, most=1)

    def prefix(self, group: Group, sample: int, step: int, rng: random.Random) -> int:
        low, high = self.interval(group.visits, hint_length(group, 1.0))
        return rng.randint(low, high)

    def interval(self, visits: Sequence[Visit], longest: int) -> tuple[int, int]:
        """The shortest and the longest part to try, in tokens; `longest` is all that may be given."""
        low, high = 0, longest
        for visit in visits:
            length = min(visit.prefix, longest)
            if self._succeeded(visit):
                high = length
                low = low if low < high else 0
            else:
                low = length
                high = high if low < high else longest
        return low, high

    def _succeeded(self, visit: Visit) -> bool:
        """A visit without a prefix is one of length 0."""
        correct = visit.correct + visit.prefixed_correct
        return correct >= self.threshold * (visit.rollouts + visit.prefixed)
