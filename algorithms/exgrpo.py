"""ExGRPO: correct rollouts of earlier steps are trained on again, beside new ones of the same prompt."""

import math
import random
from dataclasses import dataclass
from typing import ClassVar

from algorithms import losses
from algorithms.luffy import LUFFY
from algorithms.regularizers import entropy_bonus
from algorithms.selections import everything, replays
from algorithms.settings import limited
from algorithms.term import Term
from algorithms.types import Visit


@dataclass(frozen=True)
class ExGRPO(LUFFY):
    """ExGRPO: L = -1/Z [Σ_replay f(w) Â + Σ_rollouts r Â], f(w) = w/(w+γ), w = π/π_past, r = π/π_old

    A share of the groups (`replay_share`) has a correct rollout of an earlier step in the place of a new one;
    Â = R - mean is over both kinds, and π_past sampled the earlier one. The prompts of these groups are drawn
    by the number k of correct ones among the K rollouts of their newest visit: first k with a probability
    proportional to exp(-(k - K/2)² / 2), then a prompt; k = K never. Of a prompt's kept rollouts the one with
    the lowest entropy is taken. No group replays while at most `start_above` of the newest step's rollouts
    are correct. γ, these shares and the entropy bonus of 0.001 are the authors'. Deviations: the authors
    replay without a limit of age, here up to `replay_age` steps; each group replays with this probability (in
    theirs, half of a batch); the start is asked for at every step anew; the entropy is estimated by the
    log-probs of π_past, and one rollout of each visit is kept; the gradient's norm does not skip steps. Z
    counts all response tokens, as in `luffy`: which normalisation the authors have is not known.
    """

    name: ClassVar[str] = "exgrpo"
    paper: ClassVar[str] = "arXiv 2510.02245"
    uses_demonstrations: ClassVar[bool] = False
    uses_history: ClassVar[bool] = True
    min_rollouts: ClassVar[int] = 2
    entropy_coefficient: float = 0.001
    replay_share: float = limited(0.5, least=0, most=1)
    replay_age: int = limited(100, least=1)
    start_above: float = limited(0.35, least=0, most=1)

    def terms(self) -> tuple[Term, ...]:
        shaped = losses.advantage_weighted(losses.shaped_ratio(self.gamma, "behavior"))
        return (
            Term("replay", replays, shaped, population=everything),
            self.on_policy_term(),
            *entropy_bonus(self.entropy_coefficient, everything),
        )

    def replays(self, pass_rate: float, rng: random.Random) -> bool:
        return pass_rate > self.start_above and rng.random() < self.replay_share

    def replay_weight(self, visit: Visit) -> float:
        if visit.correct == visit.rollouts:
            return 0.0
        return math.exp(-((visit.correct - visit.rollouts / 2) ** 2) / 2)
