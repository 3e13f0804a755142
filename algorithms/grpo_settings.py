"""The settings that GRPO and its family share."""

from dataclasses import dataclass

from algorithms import weights
from algorithms.base import Algorithm
from algorithms.credit import repetition
from algorithms.losses import Old
from algorithms.regularizers import EntropyKind, Estimator
from algorithms.settings import limited
from algorithms.term import Norm, PerToken
from algorithms.types import Completion, Group
from algorithms.weights import Correction


@dataclass(frozen=True)
class GRPOSettings(Algorithm):
    """The settings of the GRPO family, and what follows from them."""

    # The clip of the ratio: [1 - clip_low, 1 + clip_high]; with dual_clip the loss is bounded where Â < 0.
    clip_low: float | None = limited(0.2, least=0)
    clip_high: float | None = limited(0.2, least=0)
    dual_clip: float | None = limited(None, least=1)
    # What Â is made of: reward_scale · R + reward_shift, less the penalty times the share of the response's
    # repeated sequences of `repetition_length` tokens.
    reward_scale: float = 1.0
    reward_shift: float = 0.0
    repetition_penalty: float = limited(0.0, least=0)
    repetition_length: int = limited(8, least=1)
    # Whether Â is divided by the standard deviation of the group's rewards.
    standardize: bool = True
    # How the sum over the tokens is divided (`Term.norm`); the constant of norm=constant.
    norm: Norm = "sequence_mean_token_mean"
    norm_constant: float | None = limited(None, least=1)
    # Whose log-probs π_old has, and how the difference between engine and learner is corrected.
    old: Old = "behavior"
    correction: Correction = "none"
    correction_low: float = limited(0.5, least=0)
    correction_high: float = limited(2.0, least=0)
    # The terms beside the policy's: KL to the reference, and entropy, plain or weighted by Â (IBRO).
    kl_coefficient: float = limited(0.0, least=0)
    kl_estimator: Estimator = "k3"
    entropy_coefficient: float = limited(0.0, least=0)
    entropy_kind: EntropyKind = "plain"
    # Tokens that are more probable than this have no policy gradient; they stay in the count.
    max_probability: float | None = limited(None, least=0, most=1)
    # Whether responses without an end are left out of the update.
    mask_truncated: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.correction != "none" and self.old == "behavior":
            raise ValueError(f"correction={self.correction} and old=behavior correct twice: set old=learner")
        if self.correction_low > self.correction_high:
            bounds = f"correction_low={self.correction_low} is above correction_high={self.correction_high}"
            raise ValueError(f"{bounds}: nothing would be kept")

    def shaped_reward(self, group: Group, completion: Completion) -> float:
        """What the credit rule sees in the place of the verifier's reward."""
        reward = self.reward_scale * completion.reward + self.reward_shift
        if self.repetition_penalty:
            reward -= self.repetition_penalty * repetition(completion.ids, self.repetition_length)
        return reward

    @property
    def divisor(self) -> float | None:
        """The constant of norm=constant."""
        return self.norm_constant

    @property
    def policy_weight(self) -> PerToken:
        """The correction of stale rollouts, and the mask of probable tokens."""
        corrected = weights.correction(self.correction, self.correction_low, self.correction_high)
        if self.max_probability is None:
            return corrected
        return weights.combined(corrected, weights.probability_between(0.0, self.max_probability))
