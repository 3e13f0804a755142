"""The choice of prompts of which a correct rollout of an earlier step is trained on again."""

import random
from dataclasses import dataclass

import numpy as np

from algorithms import Algorithm, Visit
from srft_ray.data.history import Choice, PromptHistory

Span = tuple[int, int]  # first step, and the step after the last


@dataclass(frozen=True)
class Bucket:
    """Prompts whose newest visits had the same outcome.

    Attributes:
        visit: one of these visits.
        rows_N: numbers of the prepared rows, in order.
    """

    visit: Visit
    rows_N: np.ndarray


class ReplayChooser:
    """Chooses prompts for the places of a step that replay: a pure function of seed, place and the history
    before a step."""

    def __init__(self, seed: int) -> None:
        """`seed`: of the run."""
        self.seed = seed
        self._known: tuple[Span, list[Bucket]] = ((0, 0), [])

    def choose(
        self, algorithm: Algorithm, step: int, place: int, history: PromptHistory, before: int
    ) -> Choice | None:
        """The prompt of a place; None if the place does not replay, or no prompt can be.

        A prompt can be replayed if its newest visit before the step `before` is at most `replay_age` steps
        old and has a correct rollout. Places are drawn for independently of each other.
        """
        if not algorithm.replay_age:
            return None
        rng = random.Random(f"{self.seed}/replays/{place}")
        if not algorithm.replays(_pass_rate(history, before), rng):
            return None
        buckets = self._buckets(history, (max(0, step - algorithm.replay_age), before))
        weights = [algorithm.replay_weight(bucket.visit) for bucket in buckets]
        if not sum(weights):
            return None
        rows_N = rng.choices(buckets, weights)[0].rows_N
        row = int(rows_N[rng.randrange(len(rows_N))])
        return Choice(row, history.visits(row, before), replays=True)

    def _buckets(self, history: PromptHistory, span: Span) -> list[Bucket]:
        """Of the prompts that can be replayed; those of the newest span are remembered."""
        known_span, buckets = self._known
        if known_span != span:
            buckets = _buckets_of(history.between(*span))
            self._known = (span, buckets)
        return buckets


def _pass_rate(history: PromptHistory, before: int) -> float:
    """Share of correct rollouts in the newest step before `before`, 0 to 1; 0 without any."""
    visits = _newest(history.between(before - 1, before))
    return int(visits["correct"].sum()) / max(1, int(visits["rollouts"].sum()))


def _newest(visits: np.ndarray) -> np.ndarray:
    """The newest visit of each row, in the order of rows. Older ones may have been removed, also of a row
    that one step visits often, and what is chosen must not depend on that."""
    backwards = visits[::-1]
    _, firsts = np.unique(backwards["row"], return_index=True)
    return backwards[firsts]


def _buckets_of(visits: np.ndarray) -> list[Bucket]:
    """Of visits in the order of their steps, ordered by their outcomes."""
    found = _newest(visits)
    found = found[found["correct"] > 0]
    outcomes = sorted(set(zip(found["rollouts"].tolist(), found["correct"].tolist(), strict=True)))
    buckets = []
    for rollouts, correct in outcomes:
        of_outcome = found[(found["rollouts"] == rollouts) & (found["correct"] == correct)]
        visit = Visit(int(of_outcome["step"][0]), rollouts, correct)
        buckets.append(Bucket(visit, of_outcome["row"]))
    return buckets
