"""Other readings of SRFT, and its ablations. Each is SRFT with other defaults for some of its settings."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from algorithms.srft import SRFT
from algorithms.term import Norm
from algorithms.weights import Granularity


@dataclass(frozen=True)
class SRFTHPT(SRFT):
    """SRFT as in the code of HPT: π/(π+γ) on demonstrations, Â without std, RL sums over a constant

    It has an entropy bonus too. Deviations from that code: the SFT term and the entropy bonus are token means
    over the whole update, not sums of means over micro-batches, and the bonus is that of rollouts only. The
    constant is `norm_constant`, not the padded width: set it to rollout.max_new_tokens for the same
    proportion of RL and SFT. A rollout is correct when its reward is above `correct_above`, not when it is 1.
    """

    name: ClassVar[str] = "srft_hpt"
    paper: ClassVar[str] = "arXiv 2509.04419, code at TsinghuaC3I/Unify-Post-Training ae332f5"
    demo_ratio: Literal["p", "p_over_p_plus_gamma"] = "p_over_p_plus_gamma"
    standardize: bool = False
    norm: Norm = "constant"
    entropy_coefficient: float = 0.001


@dataclass(frozen=True)
class SRFTAuthors(SRFT):
    """SRFT as third parties describe the authors' code: exp(+H) of each token in both weights, Â on rollouts

    Â multiplies the ratio π/π_old. It also has π/(π+γ) on demonstrations, Â without std and an
    entropy bonus. The code itself was not available, so that none of this is verified. Deviation: token
    means, where that code divides by a maximal length.
    """

    name: ClassVar[str] = "srft_authors"
    sft_entropy_sign: float = 1.0
    entropy_granularity: Granularity = "token"
    demo_ratio: Literal["p", "p_over_p_plus_gamma"] = "p_over_p_plus_gamma"
    standardize: bool = False
    self_rollout_mode: Literal["reinforce", "group_advantage"] = "group_advantage"
    self_rollout_surrogate: Literal["log_prob", "prob", "ratio", "log_ratio"] = "ratio"
    entropy_coefficient: float = 0.001


@dataclass(frozen=True)
class SRFTWithoutWSFT(SRFT):
    """SRFT without w_SFT: the weight of sft_demo is 1 (Table 3)"""

    name: ClassVar[str] = "srft_without_w_sft"
    sft_scale: float = 1.0
    sft_entropy_sign: float = 0.0


@dataclass(frozen=True)
class SRFTWithoutWRL(SRFT):
    """SRFT without w_RL: the weight of rl_positive is 1 (Table 3)"""

    name: ClassVar[str] = "srft_without_w_rl"
    rl_scale: float = 1.0
    rl_entropy_sign: float = 0.0


@dataclass(frozen=True)
class SRFTWithoutSFTDemo(SRFT):
    """SRFT without the term sft_demo, the SFT loss of demonstrations"""

    name: ClassVar[str] = "srft_without_sft_demo"
    use_sft_demo: bool = False


@dataclass(frozen=True)
class SRFTWithoutRLDemo(SRFT):
    """SRFT without the term rl_demo, the RL loss of demonstrations"""

    name: ClassVar[str] = "srft_without_rl_demo"
    use_rl_demo: bool = False
