"""The ablations of SRFT (Table 3 of arXiv 2506.19767): each is SRFT with one part left out."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms.srft import SRFT


@dataclass(frozen=True)
class SRFTWithoutWSFT(SRFT):
    """SRFT without w_SFT: the weight of sft_demo is 1 (Table 3)

    That is the first version of the paper. The ICLR version is read by third parties as w_SFT fixed at 0.1:
    set `sft_scale: 0.1`.
    """

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
