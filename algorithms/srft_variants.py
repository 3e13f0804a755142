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
    over the whole update, not sums of means over micro-batches, and the bonus is that of rollouts only. There
    RL : SFT is S/(L·D) : K, with S the sum over RL tokens, L the padded width, D ranks and K micro-batches
    per rank that hold a demonstration; here it is S/`norm_constant` : 1. For the proportion of that code set
    norm_constant = L·D·K: with D = 8 and K = 6 (512 rows of 3,000 tokens, 32,768 tokens per micro-batch) it
    is 48 times the default, which is L alone. A rollout is correct when its reward is above `correct_above`,
    not when it is 1.
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

    Â multiplies the ratio π/π_old. It also has π/(π+γ) on demonstrations, Â without std and an entropy bonus
    of 0.001. The code is public (fyqqyf/SRFT, commit 8d4e10a), but this preset follows three independent
    readings of it and was not verified against it. Its script has 8 rollouts, of which one is the
    demonstration, and two updates per step. Deviation: token means, where that code divides by a maximal
    length.
    """

    name: ClassVar[str] = "srft_authors"
    sft_entropy_sign: float = 1.0
    entropy_granularity: Granularity = "token"
    demo_ratio: Literal["p", "p_over_p_plus_gamma"] = "p_over_p_plus_gamma"
    standardize: bool = False
    self_rollout_mode: Literal["reinforce", "group_advantage"] = "group_advantage"
    self_rollout_surrogate: Literal["log_prob", "prob", "ratio", "log_ratio"] = "ratio"
    entropy_coefficient: float = 0.001
