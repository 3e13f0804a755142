"""KL-Cov: the tokens that lower the entropy most are held near the old policy."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms import covariances, losses, selections, weights
from algorithms.clip_cov import CovarianceGRPO
from algorithms.settings import limited
from algorithms.term import PerToken, Term


@dataclass(frozen=True)
class KLCov(CovarianceGRPO):
    """KL-Cov: L = -mean r Â + mean over the tokens with the highest cov of β |log π/π_old|, without a clip

    cov is that of `clip_cov`; the tokens are `share` of all rollout tokens, at least one, and β is
    `kl_weight`. Both means divide by all rollout tokens. As in verl's implementation; the term acts only with
    several updates per step (learner.mini_batches).
    """

    name: ClassVar[str] = "kl_cov"
    paper: ClassVar[str] = "arXiv 2505.22617"
    clip_low: float | None = limited(None, least=0)
    clip_high: float | None = limited(None, least=0)
    kl_weight: float = limited(1.0, least=0)

    @property
    def score(self) -> PerToken:
        return covariances.covariance

    def terms(self) -> tuple[Term, ...]:
        chosen = weights.product(weights.constant(self.kl_weight), covariances.from_cutoff(self.score))
        loss = losses.distance_to_old(self.old)
        return (*super().terms(), Term("kl_cov", selections.rollouts, loss, chosen, needs=self.needed))
