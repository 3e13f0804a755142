"""Algorithms, and the vocabulary they are composed of. Imports torch and the standard library only."""

from algorithms import credit, losses, regularizers, schedules, selections, weights
from algorithms.adaback import AdaBack
from algorithms.base import Algorithm, Stage
from algorithms.batch import Batch, PolicyOutput
from algorithms.c3po import C3PO
from algorithms.chord import CHORDMu, CHORDPhi
from algorithms.chord_variants import CHORDIS, CHORDAdaptive
from algorithms.cispo import CISPO
from algorithms.clip_cov import ClipCov
from algorithms.dapo import DAPO
from algorithms.dft import DFT
from algorithms.dgro import DGRO, OPMD
from algorithms.dr_grpo import DrGRPO
from algorithms.exgrpo import ExGRPO
from algorithms.grpo import GRPO
from algorithms.gspo import GSPO
from algorithms.guided import R3, TRAPO, GuidedGRPO
from algorithms.hinted import UFT
from algorithms.hpt import HPT
from algorithms.hpt_soft import HPTSoft
from algorithms.ibro import IBRO
from algorithms.iw_sft import IWSFT
from algorithms.kl_cov import KLCov
from algorithms.lite_ppo import LitePPO
from algorithms.luffy import LUFFY
from algorithms.pods import PODS
from algorithms.pope import POPE
from algorithms.ppo import PPO
from algorithms.preference import DPO
from algorithms.preference_variants import IPO, SimPO
from algorithms.prefix_rft import PrefixRFT
from algorithms.prioritized import PrioritizedGRPO
from algorithms.probability_mask import ProbabilityMask
from algorithms.reinforce_pp import REINFORCEPP
from algorithms.relift import ReLIFT
from algorithms.relift_buffered import ReLIFTBuffered
from algorithms.rl_plus import RLPLUS
from algorithms.rl_sft import RLWithSFTLoss
from algorithms.rloo import RLOO
from algorithms.sdft import SDFT
from algorithms.settings import Schedule, limited
from algorithms.sft import SFT
from algorithms.sft_kl import SFTKL, OnPolicyDistillation
from algorithms.sft_then_dpo import SFTThenDPO
from algorithms.sft_then_rl import SFTThenRL
from algorithms.sft_weighted import EAFT, WeightedSFT
from algorithms.srft import SRFT
from algorithms.srft_ablations import (
    SRFTWithoutRLDemo,
    SRFTWithoutSFTDemo,
    SRFTWithoutWRL,
    SRFTWithoutWSFT,
)
from algorithms.srft_variants import SRFTHPT, SRFTAuthors
from algorithms.srpo import SRPO
from algorithms.t1 import T1
from algorithms.term import Norm, PerToken, Selection, Term, labelled
from algorithms.two_stage import TwoStage
from algorithms.types import CORRECT_ABOVE, Completion, Group, SequenceRecord, Visit
from algorithms.weights import Granularity

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
        WeightedSFT,
        EAFT,
        SFTKL,
        GRPO,
        DrGRPO,
        DAPO,
        GSPO,
        RLOO,
        CISPO,
        IBRO,
        ClipCov,
        KLCov,
        ProbabilityMask,
        DGRO,
        OPMD,
        REINFORCEPP,
        LitePPO,
        PODS,
        C3PO,
        T1,
        SRPO,
        PrioritizedGRPO,
        ExGRPO,
        PPO,
        OnPolicyDistillation,
        DPO,
        IPO,
        SimPO,
        TwoStage,
        SFTThenRL,
        SFTThenDPO,
        RLWithSFTLoss,
        LUFFY,
        RLPLUS,
        CHORDMu,
        CHORDPhi,
        CHORDIS,
        CHORDAdaptive,
        HPT,
        HPTSoft,
        ReLIFT,
        ReLIFTBuffered,
        SDFT,
        PrefixRFT,
        UFT,
        R3,
        GuidedGRPO,
        POPE,
        AdaBack,
        TRAPO,
    )
}

__all__ = [
    "CORRECT_ABOVE",
    "REGISTRY",
    "Algorithm",
    "Batch",
    "Completion",
    "Granularity",
    "Group",
    "Norm",
    "PerToken",
    "PolicyOutput",
    "Schedule",
    "Selection",
    "SequenceRecord",
    "Stage",
    "Term",
    "Visit",
    "credit",
    "labelled",
    "limited",
    "losses",
    "regularizers",
    "schedules",
    "selections",
    "weights",
    *(cls.__name__ for cls in REGISTRY.values()),
]
