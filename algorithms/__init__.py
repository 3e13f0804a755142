"""Interchangeable algorithms. This package imports torch and the standard library, nothing else."""

from algorithms.base import Algorithm, Schedule, Stage
from algorithms.chord import CHORDMu, CHORDPhi
from algorithms.dapo import DAPO
from algorithms.dft import DFT
from algorithms.dr_grpo import DrGRPO
from algorithms.grpo import GRPO
from algorithms.gspo import GSPO
from algorithms.hpt import HPT
from algorithms.iw_sft import IWSFT
from algorithms.luffy import LUFFY
from algorithms.prefix_rft import PrefixRFT
from algorithms.relift import ReLIFT
from algorithms.rl_plus import RLPLUS
from algorithms.rl_sft import RLWithSFTLoss
from algorithms.rloo import RLOO
from algorithms.sft import SFT
from algorithms.srft import SRFT
from algorithms.srft_variants import (
    SRFTHPT,
    SRFTAuthors,
    SRFTWithoutRLDemo,
    SRFTWithoutSFTDemo,
    SRFTWithoutWRL,
    SRFTWithoutWSFT,
)
from algorithms.term import Term
from algorithms.two_stage import SFTThenRL, TwoStage
from algorithms.types import Batch, Completion, Group, PolicyOutput

REGISTRY: dict[str, type[Algorithm]] = {
    cls.name: cls
    for cls in (
        SRFT,
        SRFTHPT,
        SRFTAuthors,
        SRFTWithoutWSFT,
        SRFTWithoutWRL,
        SRFTWithoutSFTDemo,
        SRFTWithoutRLDemo,
        SFT,
        DFT,
        IWSFT,
        GRPO,
        DrGRPO,
        DAPO,
        GSPO,
        RLOO,
        TwoStage,
        SFTThenRL,
        RLWithSFTLoss,
        LUFFY,
        RLPLUS,
        CHORDMu,
        CHORDPhi,
        HPT,
        ReLIFT,
        PrefixRFT,
    )
}

__all__ = [
    "REGISTRY",
    "Algorithm",
    "Batch",
    "Completion",
    "Group",
    "PolicyOutput",
    "Schedule",
    "Stage",
    "Term",
    *(cls.__name__ for cls in REGISTRY.values()),
]
