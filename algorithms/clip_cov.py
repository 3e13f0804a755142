"""Clip-Cov: a few of the tokens that lower the entropy most have no gradient."""

import dataclasses
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from algorithms import covariances, losses, weights
from algorithms.grpo import GRPO
from algorithms.losses import Old
from algorithms.settings import limited
from algorithms.term import Norm, PerToken, Term
from algorithms.types import SequenceRecord


@dataclass(frozen=True)
class CovarianceGRPO(GRPO):
    """GRPO that knows (Â - mean Â)(log π - mean log π) of each token, with means over the update's tokens."""

    needed: ClassVar[tuple[str, ...]] = ("values", "sequence_logprobs", "token_scores")
    norm: Norm = "token_mean"
    old: Old = "learner"
    share: float = limited(2e-4, least=0, most=1)

    def sequence_values(self, records: Sequence[SequenceRecord]) -> Mapping[str, Sequence[float]]:
        totals: dict[int, list[float]] = defaultdict(lambda: [1e-9, 0.0, 0.0])
        for record in records:
            if record.trained and record.origin == "rollout":
                total = totals[record.update]
                total[0] += record.length
                total[1] += record.length * record.advantage
                total[2] += record.logprob
        draws = [random.Random(f"{r.group_id}/{r.sample}/{r.seed}").randrange(2**20) for r in records]
        return {
            "mean_advantage": [totals[r.update][1] / totals[r.update][0] for r in records],
            "mean_logprob": [totals[r.update][2] / totals[r.update][0] for r in records],
            "draw": draws,
        }

    def cutoffs(self, scores: Tensor) -> Mapping[str, float]:
        return {"cutoff": covariances.cutoff(scores, self.share)}


@dataclass(frozen=True)
class ClipCov(CovarianceGRPO):
    """Clip-Cov: GRPO, and of the tokens with cov in [lowest, highest] a random few have no gradient

    cov = (Â - mean Â)(log π - mean log π), with means over all rollout tokens of the update. The few are
    `share` of all rollout tokens, at least one; a token that the clip of the ratio stops is not among them.
    Choices: the random order is a hash of run.seed, prompt, sample and position. Token mean, 2e-4 and [1, 5]
    are the values of verl's implementation.
    """

    name: ClassVar[str] = "clip_cov"
    paper: ClassVar[str] = "arXiv 2505.22617"
    lowest: float = 1.0
    highest: float = 5.0

    @property
    def score(self) -> PerToken:
        stopped = losses.is_clipped(self.ratio(), self.clip_low, self.clip_high, self.dual_clip)
        return covariances.drawn_between(self.lowest, self.highest, stopped)

    def policy_term(self) -> Term:
        kept = covariances.below_cutoff(self.score)
        weight = weights.combined(self.policy_weight, kept)
        return dataclasses.replace(super().policy_term(), weight=weight, needs=self.needed)
