"""SFT and then DPO, each the learning of an implicit reward."""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from algorithms.base import Algorithm
from algorithms.preference import DPO
from algorithms.two_stage import TwoStage

DPO_FROM_THERE = partial(DPO, reference_at_start=True)


@dataclass(frozen=True)
class SFTThenDPO(TwoStage):
    """SFT and then DPO, whose reference is the policy that SFT ends with

    The paper reads both as learning an implicit reward, and advises a smaller learning rate for SFT than is
    usual (up to 25 % better after DPO): set it in `first_schedule`. Its rates are unknown here, so that the
    defaults are the run's. Its variants of SFT with other f-divergences are left out, because their formulas
    are not public.
    """

    name: ClassVar[str] = "sft_then_dpo"
    paper: ClassVar[str] = "arXiv 2507.00018"
    second: Algorithm = field(default_factory=DPO_FROM_THERE)
